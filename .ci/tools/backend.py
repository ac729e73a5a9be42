"""setuptools' build backend, with archives that are the same bytes whoever builds them, and an SBOM.

File times are SOURCE_DATE_EPOCH, or the earliest that a zip file knows; owners, modes and order are fixed.
"""

import base64
import gzip
import hashlib
import io
import json
import os
import tarfile
import uuid
import zipfile
from datetime import datetime, timezone
from email.parser import Parser
from importlib.metadata import version
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403

EARLIEST = 315532800  # 1980-01-01

# What a binary holds beside the package's own code: version, licence, and what is taken from it.
COMPILED_IN = {
    "Cython": ("Apache-2.0", "utility code of the generated C"),
    "numpy": ("BSD-3-Clause", "headers"),
}


def build_sdist(sdist_directory, config_settings=None):
    os.environ.setdefault("SOURCE_DATE_EPOCH", str(EARLIEST))
    name = build_meta.build_sdist(sdist_directory, config_settings)
    normalise_sdist(Path(sdist_directory, name))
    return name


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    os.environ.setdefault("SOURCE_DATE_EPOCH", str(EARLIEST))
    name = build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
    normalise_wheel(Path(wheel_directory, name))
    return name


def epoch():
    return max(int(os.environ["SOURCE_DATE_EPOCH"]), EARLIEST)


def mode_of(executable):
    return 0o755 if executable else 0o644


def normalise_sdist(path):
    """Rewrite a tar.gz: entries by name, one time, no owner, the modes that git knows."""
    with tarfile.open(path) as archive:
        files = {
            member.name: (archive.extractfile(member).read(), member.mode & 0o100)
            for member in archive
            if member.isfile()
        }
    with (
        open(path, "wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=epoch()) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name in sorted(files):
            content, executable = files[name]
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.mode = len(content), epoch(), mode_of(executable)
            archive.addfile(member, io.BytesIO(content))


def normalise_wheel(path):
    """Rewrite a wheel with an SBOM in its metadata (PEP 770): entries by name, one time, fixed modes."""
    with zipfile.ZipFile(path) as archive:
        files = {info.filename: archive.read(info) for info in archive.infolist() if not info.is_dir()}
    info = next(name.rpartition("/")[0] for name in files if name.endswith(".dist-info/WHEEL"))
    metadata = Parser().parsestr(files[f"{info}/METADATA"].decode())
    files[f"{info}/sboms/{metadata['Name']}.cdx.json"] = sbom(metadata)
    record = f"{info}/RECORD"
    del files[record]
    # metadata last, as the wheel specification recommends
    names = sorted(files, key=lambda name: (name.startswith(info), name))
    lines = [f"{name},sha256={digest(files[name])},{len(files[name])}" for name in names]
    files[record] = "\n".join([*lines, f"{record},,", ""]).encode()
    date_time = datetime.fromtimestamp(epoch(), timezone.utc).timetuple()[:6]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in [*names, record]:
            entry = zipfile.ZipInfo(name, date_time)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # Unix, or the modes mean nothing
            entry.external_attr = (0o100000 | mode_of(name.endswith((".so", ".pyd")))) << 16
            archive.writestr(entry, files[name])


def digest(content):
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def sbom(metadata):
    """CycloneDX, of what the wheel contains; numpy at run time is a requirement, and not part of it."""

    def component(name, release, licence, **more):
        url = f"pkg:pypi/{name.lower()}@{release}"
        licences = [{"license": {"id": licence}}]
        return {
            "type": "library",
            "bom-ref": url,
            "name": name,
            "version": release,
            "licenses": licences,
            "purl": url,
            **more,
        }

    package = component(metadata["Name"], metadata["Version"], metadata["License-Expression"])
    parts = [
        component(name, version(name), licence, description=what)
        for name, (licence, what) in COMPILED_IN.items()
    ]
    references = [part["bom-ref"] for part in parts]
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, " ".join([package["purl"], *references])).urn,
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(epoch(), timezone.utc).isoformat(),
            "component": package,
        },
        "components": parts,
        "dependencies": [
            {"ref": package["bom-ref"], "dependsOn": references},
            *({"ref": reference} for reference in references),
        ],
    }
    return (json.dumps(document, indent=1) + "\n").encode()
