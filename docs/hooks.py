"""Pages link to `../benchmarks/results`, so that they can be read in the repository; on the site that is `results/`."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def on_files(files: Files, config: Any) -> Files:
    """Add what was measured to the files of the site."""
    for path in sorted(path for path in RESULTS.rglob("*") if path.is_file()):
        uri = f"results/{path.relative_to(RESULTS).as_posix()}"
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page with its links to results as they are on the site."""
    return markdown.replace("](../benchmarks/results/", "](results/")
