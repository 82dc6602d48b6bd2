import os
from pathlib import Path

from posthouse.tools.folder import MAX_FILE_BYTES, Document, Found, load, scan


def _paths(root: Path) -> list[str]:
    return [found.path for found in scan(root)]


def test_documents_are_found_at_every_depth(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("z.md", "a/b/c.TXT", "a/x.html", "a/x.py", "README"):
        (tmp_path / name).write_text("text")
    assert _paths(tmp_path) == ["a/b/c.TXT", "a/x.html", "z.md"]


def test_hidden_too_large_and_odd_files_are_left_out(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "a.md").write_text("hidden")
    (tmp_path / ".b.md").write_text("hidden")
    (tmp_path / "folder.md").mkdir()
    (tmp_path / "large.md").write_bytes(b"x" * (MAX_FILE_BYTES + 1))
    (tmp_path / "full.md").write_bytes(b"x" * MAX_FILE_BYTES)
    (tmp_path / os.fsdecode(b"odd\xff.md")).write_text("no UTF-8 name")
    os.mkfifo(tmp_path / "pipe.md")
    assert _paths(tmp_path) == ["full.md"]


def test_links_are_followed_to_visible_files_of_the_folder_only(tmp_path: Path) -> None:
    root = tmp_path / "docs"
    (root / "in").mkdir(parents=True)
    outside = tmp_path / "secret.md"
    outside.write_text("secret")
    (root / "in" / "real.md").write_text("real")
    (root / ".hidden.md").write_text("hidden")
    (root / "good.md").symlink_to("in/real.md")
    (root / "bad.md").symlink_to(outside)
    (root / "up.md").symlink_to("../secret.md")
    (root / "sly.md").symlink_to(".hidden.md")
    (root / "dead.md").symlink_to("nowhere.md")
    (root / "loop.md").symlink_to("loop.md")
    (root / "outer").symlink_to(tmp_path)
    assert _paths(root) == ["good.md", "in/real.md"]


def test_a_document_has_a_title_and_text(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# Horses\n\ncharset=latin-1 größe")
    (tmp_path / "plain.txt").write_bytes(b"no heading \xff")
    head = "<html><head><meta charset=latin-1><title>Page</title></head>"
    page = f"{head}<body><p>größe</p></body></html>"
    (tmp_path / "p.html").write_bytes(page.encode("latin-1"))
    documents = [load(tmp_path, found) for found in scan(tmp_path)]
    assert documents == [
        Document("a.md", "Horses", "# Horses\n\ncharset=latin-1 größe"),
        Document("p.html", "Page", "größe"),
        Document("plain.txt", "plain", "no heading \ufffd"),
    ]


def test_a_document_that_is_gone_or_grew_is_none(tmp_path: Path) -> None:
    (tmp_path / "grown.md").write_bytes(b"x" * (MAX_FILE_BYTES + 1))
    assert load(tmp_path, Found("gone.md", 1, 1)) is None
    assert load(tmp_path, Found("grown.md", 1, 1)) is None
