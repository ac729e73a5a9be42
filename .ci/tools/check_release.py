"""Whether the sources are ready to be released; prints the version, or all that is missing.

python .ci/tools/check_release.py [TAG]    in the hosted workflow with the tag; before, without
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# reserved for examples (RFC 2606), so that no address here is anybody's by chance
PLACEHOLDER = "example.org"


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def git(*arguments):
    run = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return run.stdout.strip()


def search(pattern, text):
    match = re.search(pattern, text, re.MULTILINE)
    return match[1] if match else None


def problems(version, tag=None):
    """What is not as a release has it."""
    date = search(rf"^## {re.escape(version)} \((\d{{4}}-\d\d-\d\d)\)$", read("CHANGELOG.md"))
    if date is None:
        yield f"CHANGELOG.md has no section '## {version} (YYYY-MM-DD)'"
    if search(r"^version: (\S+)$", read("CITATION.cff")) != version:
        yield f"CITATION.cff is not of version {version}"
    if search(r"^date-released: (\S+)$", read("CITATION.cff")) != date:
        yield f"CITATION.cff is not of the date {date}"
    if PLACEHOLDER in read("pyproject.toml"):
        yield "pyproject.toml has placeholders for addresses"
    if tag is not None:
        if tag != f"v{version}":
            yield f"the tag {tag} is not v{version}"
        return
    if git("status", "--porcelain"):
        yield "there are changes that are not committed"
    if git("branch", "--show-current") != "main":
        yield "the branch is not main"
    if git("tag", "--list", f"v{version}"):
        yield f"there is a tag v{version} already"


def main():
    version = search(r'^__version__ = "(.+)"$', read("stableloss/__init__.py"))
    found = list(problems(version, *sys.argv[1:2]))
    if found:
        sys.exit("\n".join(["Not ready to be released:", *(f"- {problem}" for problem in found)]))
    print(version)


if __name__ == "__main__":
    main()
