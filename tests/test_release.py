"""What is built and published: flags for each platform, archives, and files that have to agree."""

import importlib.util
import io
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import distribution
from pathlib import Path
from types import SimpleNamespace

import pytest

import stableloss as sl

REPOSITORY = Path(__file__).resolve().parent.parent
# not in the source distribution
WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(name):
    return (REPOSITORY / name).read_text(encoding="utf-8")


@pytest.fixture
def setup(monkeypatch):
    # it names its files from there
    monkeypatch.chdir(REPOSITORY)
    return load(REPOSITORY / "setup.py")


@pytest.fixture
def backend(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1234567890")
    return load(REPOSITORY / ".ci" / "tools" / "backend.py")


# ---- flags ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("platform", "expected"),
    [
        ("linux-x86_64", ["base", "v3", "v4"]),
        ("linux-aarch64", ["base"]),
        ("linux-riscv64", ["base"]),
        ("macosx-10.13-x86_64", ["base", "v3"]),
        ("macosx-11.0-arm64", ["base"]),
        ("macosx-10.13-universal2", ["base", "v3"]),
        ("win-amd64", ["base", "v3", "v4"]),
        ("win-arm64", ["base"]),
        ("win32", ["base"]),
        ("mingw_x86_64_ucrt_gnu", ["base", "v3", "v4"]),
    ],
)
def test_levels_of_platform(setup, monkeypatch, platform, expected):
    monkeypatch.setattr(setup, "PLATFORM", platform)
    assert [level for level, _ in setup.levels()] == expected


def test_universal_build_leaves_its_arm_part_alone(setup, monkeypatch):
    monkeypatch.setattr(setup, "PLATFORM", "macosx-10.13-universal2")
    assert dict(setup.levels())["v3"] == ["-Xarch_x86_64", "-march=x86-64-v3"]


class Compiler:
    """As much of setuptools' MSVC compiler as the build asks for."""

    compiler_type = "msvc"
    initialized = False
    cc = "cl.exe"

    def initialize(self):
        self.initialized = True


def command(setup, compiler):
    from setuptools import Distribution

    made = setup.BuildExtensions(Distribution())
    made.compiler = compiler
    made.extensions = [
        SimpleNamespace(extra_compile_args=["-O3", "-g0", "-march=x86-64-v3"], extra_link_args=[])
    ]
    return made


@pytest.mark.parametrize("name", ["cl", "cl.exe", "clang-cl-that-is-not-there"])
def test_msvc_is_refused(setup, monkeypatch, tmp_path, name):
    (tmp_path / "cl").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CC", name)
    with pytest.raises(SystemExit, match=rf"'{name}' is not clang-cl.*set CC=clang-cl; or set CC=gcc"):
        command(setup, Compiler()).use_clang_cl()


@pytest.mark.parametrize("named", [False, True])
def test_clang_cl_gets_our_flags(setup, monkeypatch, tmp_path, named):
    path = tmp_path / "clang-cl"
    path.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    if named:
        monkeypatch.setenv("CC", str(path))
    compiler = Compiler()
    made = command(setup, compiler)
    made.use_clang_cl()
    assert compiler.initialized
    assert compiler.cc == str(path)
    assert made.extensions[0].extra_compile_args == ["/clang:-O3", "/clang:-march=x86-64-v3"]
    assert made.extensions[0].extra_link_args == ["/Brepro"]


# ---- archives ------------------------------------------------------------------------------------


def test_sdist_is_normalised(backend, tmp_path):
    path = tmp_path / "a.tar.gz"
    made = []
    for order, mode, mtime in (("xy", 0o640, 1.5e9), ("yx", 0o666, 1.6e9)):
        with tarfile.open(path, "w:gz") as archive:
            for name in order:
                member = tarfile.TarInfo(f"a/{name}")
                member.size, member.mtime, member.uid, member.uname = 3, mtime, 1000, "me"
                member.mode = mode | (0o111 if name == "y" else 0)
                archive.addfile(member, io.BytesIO(b"abc"))
        backend.normalise_sdist(path)
        made.append(path.read_bytes())
    assert made[0] == made[1]
    with tarfile.open(path) as archive:
        got = [(m.name, m.mode, m.mtime, m.uid, m.uname, archive.extractfile(m).read()) for m in archive]
    assert got == [
        ("a/x", 0o644, 1234567890, 0, "", b"abc"),
        ("a/y", 0o755, 1234567890, 0, "", b"abc"),
    ]


METADATA = b"Metadata-Version: 2.4\nName: a\nVersion: 1\nLicense-Expression: BSD-3-Clause\n"


def test_wheel_is_normalised(backend, tmp_path):
    path = tmp_path / "a.whl"
    files = {"a/x.so": b"abc", "a-1.dist-info/METADATA": METADATA, "a-1.dist-info/WHEEL": b"", "a/y.py": b""}
    made = []
    for order, mode, year in ((sorted(files), 0o600, 2001), (sorted(files, reverse=True), 0o777, 2002)):
        with zipfile.ZipFile(path, "w") as archive:
            for name in [*order, "a-1.dist-info/RECORD"]:
                entry = zipfile.ZipInfo(name, (year, 1, 1, 0, 0, 0))
                entry.external_attr = mode << 16
                archive.writestr(entry, files.get(name, b"old"))
        backend.normalise_wheel(path)
        made.append(path.read_bytes())
    assert made[0] == made[1]
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        record = archive.read("a-1.dist-info/RECORD").decode()
    assert [info.filename for info in infos] == [
        "a/x.so",
        "a/y.py",
        "a-1.dist-info/METADATA",
        "a-1.dist-info/WHEEL",
        "a-1.dist-info/sboms/a.cdx.json",
        "a-1.dist-info/RECORD",
    ]
    assert {info.date_time for info in infos} == {(2009, 2, 13, 23, 31, 30)}
    assert [stat.S_IMODE(info.external_attr >> 16) for info in infos] == [0o755, *[0o644] * 5]
    # the digest of "abc" as FIPS 180-2 has it, in base64
    assert "a/x.so,sha256=ungWv48Bz-pBQUDeXa4iI7ADYaOWF3qctBD_YfIAFa0,3" in record.splitlines()
    assert record.endswith("a-1.dist-info/RECORD,,\n")


# ---- the check before a release -------------------------------------------------------------------


@pytest.fixture
def checker():
    return load(REPOSITORY / ".ci" / "tools" / "check_release.py")


@pytest.fixture
def ready(checker, monkeypatch, tmp_path):
    """A repository of what the check reads, with nothing left to do."""
    texts = {
        "CHANGELOG.md": "# Changes\n\n## 1.2.3 (2026-01-31)\n",
        "CITATION.cff": "version: 1.2.3\ndate-released: 2026-01-31\n",
        "pyproject.toml": '[project.urls]\nSource = "https://a.test"\n',
        "stableloss/__init__.py": '__version__ = "1.2.3"\n',
    }
    (tmp_path / "stableloss").mkdir()
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(checker, "ROOT", tmp_path)
    identity = ["-c", "user.name=a", "-c", "user.email=a@a.test", "-c", "commit.gpgsign=false"]
    checker.git("init", "--quiet", "--initial-branch", "main")
    checker.git("add", ".")
    checker.git(*identity, "commit", "--quiet", "--message", "Release")
    return tmp_path


@pytest.mark.skipif(shutil.which("git") is None, reason="asks git")
def test_release_that_is_ready(checker, ready, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["check_release.py"])
    checker.main()
    assert capsys.readouterr().out == "1.2.3\n"
    assert list(checker.problems("1.2.3", "v1.2.3")) == []


@pytest.mark.skipif(shutil.which("git") is None, reason="asks git")
@pytest.mark.parametrize(
    ("name", "old", "new", "expected"),
    [
        (
            "CHANGELOG.md",
            "(2026-01-31)",
            "(unreleased)",
            "CHANGELOG.md has no section '## 1.2.3 (YYYY-MM-DD)'",
        ),
        ("CITATION.cff", "1.2.3", "1.2.2", "CITATION.cff is not of version 1.2.3"),
        ("CITATION.cff", "01-31", "01-30", "CITATION.cff is not of the date 2026-01-31"),
        ("pyproject.toml", "a.test", "example.org", "pyproject.toml has placeholders for addresses"),
    ],
)
def test_release_that_is_not_ready(checker, ready, name, old, new, expected):
    path = ready / name
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    assert expected in checker.problems("1.2.3", "v1.2.3")
    assert {expected, "there are changes that are not committed"} <= set(checker.problems("1.2.3"))


@pytest.mark.skipif(shutil.which("git") is None, reason="asks git")
def test_release_from_elsewhere_or_twice(checker, ready):
    checker.git("tag", "v1.2.3")
    checker.git("switch", "--quiet", "--create", "other")
    assert list(checker.problems("1.2.3")) == ["the branch is not main", "there is a tag v1.2.3 already"]
    assert list(checker.problems("1.2.3", "v1.2.4")) == ["the tag v1.2.4 is not v1.2.3"]


def test_release_check_reads_this_repository(checker):
    """Of which it names what is left to do, where there is anything."""
    run = subprocess.run(
        [sys.executable, REPOSITORY / ".ci" / "tools" / "check_release.py", f"v{sl.__version__}"],
        capture_output=True,
        text=True,
    )
    left = list(checker.problems(sl.__version__, f"v{sl.__version__}"))
    assert run.stdout == ("" if left else f"{sl.__version__}\n")
    assert run.stderr.splitlines()[1:] == [f"- {problem}" for problem in left]


# ---- files that have to agree --------------------------------------------------------------------


def test_version_is_everywhere_the_same():
    assert re.search(r"^## (\S+)", read("CHANGELOG.md"), re.MULTILINE)[1] == sl.__version__
    assert re.search(r"^version: (\S+)$", read("CITATION.cff"), re.MULTILINE)[1] == sl.__version__


def test_links_of_the_readme_are_absolute_in_the_metadata():
    metadata = distribution("stableloss").metadata
    text = metadata.get_payload() or metadata["Description"]
    links = re.findall(r'\]\(([^)\s]+)|\b(?:src|srcset|href)="([^"]+)', text)
    targets = [a or b for a, b in links]
    assert targets
    assert [link for link in targets if not re.match(r"https?://|#|mailto:", link)] == []
    source = dict(url.split(", ") for url in metadata.get_all("Project-URL"))["Source"]
    images = re.findall(r"!\[[^\]]*\]\(([^)]+)", text)
    assert images
    assert all(link.startswith(f"{source}/raw/v{sl.__version__}/") for link in images)


def test_placeholders_are_in_one_file():
    checker = load(REPOSITORY / ".ci" / "tools" / "check_release.py")
    texts = [
        *REPOSITORY.glob("*.md"),
        *REPOSITORY.glob("docs/**/*.md"),
        REPOSITORY / "CITATION.cff",
        *WORKFLOWS,
    ]
    named = {path.name for path in texts if checker.PLACEHOLDER in path.read_text(encoding="utf-8")}
    # which says what they are
    assert named <= {"CONTRIBUTING.md"}
    urls = re.search(r"^\[project\.urls\]\n((?:\w+ = .*\n)+)", read("pyproject.toml"), re.MULTILINE)[1]
    for name in re.findall(r"^\w+", urls, re.MULTILINE):
        assert f"`{name}`" in read("CONTRIBUTING.md")


def test_pre_commit_runs_the_linters_of_ci():
    hooks = re.findall(r"^ +entry: (.*)$", read(".pre-commit-config.yaml"), re.MULTILINE)
    lines = read(".ci/run").splitlines()
    assert hooks == [line for line in lines if re.match(r"(ruff|cython-lint|mypy)\b", line)]


def test_contributing_lists_the_long_checks():
    checks = re.findall(r"^check ([\w-]+) ", read(".ci/full"), re.MULTILINE)
    table = re.search(r"^\| name \|.*\n(?:\|.*\n)+", read("CONTRIBUTING.md"), re.MULTILINE)[0]
    assert checks == re.findall(r"`([\w-]+)`(?=,| \|)", re.sub(r"(?m)(^\|[^|]*\|).*$", r"\1", table))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned(path):
    """To a commit, as a tag can be moved."""
    uses = re.findall(r"^ +(?:- )?uses: (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert uses
    assert [line for line in uses if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v[\d.]+", line)] == []
