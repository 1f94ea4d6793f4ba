"""The package as it is installed, and the order of its imports."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import kdcache

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
FOLDERS = {"kdcache": ROOT / "kdcache", "kdcache.stages": ROOT / "stages", "kdcache.configs": ROOT / "configs"}

# A module imports only from those above it in the table of the design page, which is the only list of them.
ORDER = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "design.md").read_text("utf-8"), re.MULTILINE)

OUTSIDE = ("__init__", "__main__")


def top_module(module: str) -> str:
    """The name after ``kdcache``."""
    return module.split(".")[1]


def imports() -> list[tuple[str, str]]:
    found = []
    for top, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            module = ".".join([top, *path.relative_to(folder).with_suffix("").parts])
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.module == "kdcache":
                    found += [(module, f"kdcache.{name.name}") for name in node.names]
                elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kdcache."):
                    found.append((module, str(node.module)))
                elif isinstance(node, ast.Import):
                    found += [(module, name.name) for name in node.names if name.name.startswith("kdcache.")]
    return found


def test_imports_run_one_way() -> None:
    arrows = [(start, end) for start, end in imports() if top_module(end) in ORDER and top_module(start) not in OUTSIDE]
    assert len(arrows) > 50
    assert {top_module(start) for start, _ in arrows} <= set(ORDER)
    assert [arrow for arrow in arrows if ORDER.index(top_module(arrow[0])) < ORDER.index(top_module(arrow[1]))] == []


def test_every_public_name_resolves_and_importing_kdcache_does_not_import_torch() -> None:
    script = (
        "import sys, kdcache\nassert 'torch' not in sys.modules\n"
        "assert set(kdcache.PUBLIC) <= set(dir(kdcache))\n"
        "for name in kdcache.PUBLIC:\n    getattr(kdcache, name)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    source = (ROOT / "kdcache" / "__init__.py").read_text("utf-8")
    typed = source.partition("if TYPE_CHECKING:")[2].partition("__version__")[0]
    assert [name for name in kdcache.PUBLIC if not re.search(rf"\b{name}\b", typed)] == []


def test_every_package_on_disk_is_listed() -> None:
    on_disk = {
        ".".join([top, *path.parent.relative_to(folder).parts])
        for top, folder in {**FOLDERS, "kdcache.data": ROOT / "data"}.items()
        for path in folder.rglob("*")
        if path.name == "__init__.py" or path.suffix == ".toml"  # setuptools reads a folder of data as a package, too
    }
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == on_disk


SCRIPT = (
    "import kdcache, kdcache.stages, kdcache.configs, kdcache.data\n"
    "from kdcache import datasets\nfrom kdcache.config import StudentConfig\n"
    "from kdcache.models.sources import shipped_teacher\n"
    "assert len(datasets.load('fashion-mini').train) == 6000\n"
    "assert shipped_teacher().is_file()\n"
    "assert StudentConfig.load('cifar100').epochs == 240\n"
    "from kdcache.stages.demo import recorded_figures\n"
    "assert len(recorded_figures()['seeds']) == 10\n"
    "print(kdcache.__file__)\n"
)


def test_this_installation_is_complete(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source") / "kdcache"
    left_out = shutil.ignore_patterns(".git", ".venv", "runs", "build", "*.egg-info", ".*_cache")
    shutil.copytree(ROOT, source, ignore=left_out)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", source.parent, source]
    subprocess.run(command, check=True, timeout=300)
    return next(source.parent.glob("*.whl"))


def test_the_wheel_installs_only_kdcache(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"kdcache"}


def test_the_wheel_is_complete(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path))


def test_the_readme_and_ci_use_the_same_command_for_the_tests() -> None:
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    lines = [line for line in (ROOT / "README.md").read_text("utf-8").splitlines() if "python -m pytest" in line]
    assert len(lines) == 1
    assert "grep -m 1 'python -m pytest' README.md" in script


def test_files_beside_the_package_state_its_version_and_pythons() -> None:
    citation, changelog, workflow = (
        (ROOT / name).read_text("utf-8") for name in ("CITATION.cff", "CHANGELOG.md", ".github/workflows/tests.yml")
    )
    assert re.findall(r"^version: (.*)$", citation, re.MULTILINE) == [kdcache.__version__]
    assert re.search(rf"^## \[{re.escape(kdcache.__version__)}\]", changelog, re.MULTILINE)

    pythons = [line.split()[-1] for line in PYPROJECT["project"]["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert PYPROJECT["project"]["requires-python"] == f">={pythons[0]}"
    assert re.findall(r"^ +python: (\[.*?\])", workflow, re.MULTILINE) == [str(pythons).replace("'", '"')]
    assert re.findall(r'python-version: "(.*)"', workflow) == [pythons[0]]


def bounds(lines: list[str]) -> str:
    """Name the oldest versions that are allowed, as in ``numpy 1.26, zarr 3.1.3``."""
    found = (re.match(r"([\w-]+)>=([\d.]+)", line) for line in lines)
    return ", ".join(f"{each[1]} {each[2]}" for each in found if each)


def test_the_page_states_the_oldest_versions() -> None:
    project, page = PYPROJECT["project"], (ROOT / "docs" / "start.md").read_text("utf-8")
    parts = {"kdcache": project["dependencies"], **project["optional-dependencies"]}
    rows = [f"| `{name}` | {bounds(lines)} |" for name, lines in parts.items() if name not in ("docs", "test")]
    assert [row for row in rows if row not in page] == []
    assert f"pytorch-{bounds(parts['kdcache']).split(',')[0].split()[1]}%2B" in (ROOT / "README.md").read_text("utf-8")


URLS = ("Documentation", "Source", "Issues", "Changelog")
ADDRESSES = "".join(f'{name} = "https://e.org/kdcache/"\n' for name in URLS)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The scripts of a release, in a project that has no address yet."""
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    (tmp_path / "kdcache").mkdir()
    for name, text in {
        "README.md": (ROOT / "README.md").read_text("utf-8"),
        "kdcache/__init__.py": '__version__ = "1.2.0"\n',
        "pyproject.toml": "[project.urls]\n",
        "CITATION.cff": "version: 1.2.0\n",
        "CHANGELOG.md": "## [1.2.0] - unreleased\n",
    }.items():
        (tmp_path / name).write_text(text, "utf-8")
    return tmp_path


def test_a_release_without_addresses_is_refused(project: Path) -> None:
    def missing() -> list[str]:
        done = subprocess.run([project / ".ci" / "release"], capture_output=True, text=True, timeout=60)
        assert done.returncode == (1 if done.stderr else 0)
        return [line.removeprefix("missing: ").split(",")[0] for line in done.stderr.splitlines()]

    names = [*URLS, "repository-code", "the date of 1.2.0"]
    assert missing() == names
    (project / "pyproject.toml").write_text(f"[project.urls]\n{ADDRESSES}")
    assert missing() == names[4:]
    (project / "CITATION.cff").write_text("repository-code: https://e.org/kdcache\n")
    (project / "CHANGELOG.md").write_text("## [1.2.0] - 2030-01-02\n")
    assert missing() == []
    workflow = (ROOT / ".github" / "workflows" / "publish.yml").read_text("utf-8")
    assert workflow.index("run: .ci/release") < workflow.index("run: .ci/package") < workflow.index("pypi-publish")


def test_links_of_the_readme_lead_somewhere_on_pypi(project: Path) -> None:
    def shown() -> str:
        return subprocess.run([project / ".ci" / "readme"], stdout=subprocess.PIPE, text=True, check=True).stdout

    assert shown() == (project / "README.md").read_text("utf-8")
    (project / "pyproject.toml").write_text(f"[project.urls]\n{ADDRESSES}")
    assert {link for link in re.findall(r"\]\(([^)]*)\)", shown()) if not link.startswith("https://")} == set()
    assert "](https://e.org/kdcache/raw/v1.2.0/docs/idea.png)" in shown()
    assert "](https://e.org/kdcache/blob/v1.2.0/docs/start.md)" in shown()
