"""Folders with one folder of image files a class, with or without folders for the parts above them.

cat/…, dog/…                               classes
train/cat/…, test/cat/…, val/cat/…         parts of classes; a part without labels is left aside
train/n0144/images/…, val/val_annotations.txt, words.txt      Tiny ImageNet as it is published
anything/cat/…                             one folder around it all is looked through
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from potstill import files
from potstill.data import pixels
from potstill.data.classes import readable
from potstill.data.reading import Found, Raw
from potstill.data.split import Part, part_of
from potstill.errors import PotstillError

NAMED = 5  # names in a message
WORDS = "words.txt"  # wnid <tab> what it means
Files = list[tuple[str, Path]]
"""Names for messages, and files."""


@dataclass(frozen=True)
class Folder:
    """What a folder holds, hidden files and folders and the folders of potstill's own runs left out."""

    path: Path
    folders: tuple["Folder", ...]
    images: tuple[Path, ...]  # directly in it, by their endings
    others: tuple[Path, ...]  # other files

    @property
    def name(self) -> str:
        """Its name as that of a class."""
        return readable(self.path.name)

    @cached_property
    def bearing(self) -> tuple["Folder", ...]:
        """Its folders that hold images at any depth."""
        return tuple(child for child in self.folders if child.all_images)

    @cached_property
    def all_images(self) -> list[Path]:
        """Images in it and below."""
        return [*self.images, *(image for child in self.folders for image in child.all_images)]

    @cached_property
    def all_others(self) -> list[Path]:
        """Other files in it and below."""
        return [*self.others, *(file for child in self.folders for file in child.all_others)]

    @property
    def is_class(self) -> bool:
        """Whether images lie in it and none deeper: classes may be called as parts are, CIFAR-100 has one of trains."""
        return bool(self.images) and not self.bearing


def scan(path: Path) -> Folder:
    """A folder's contents, links followed (never in a circle); pipes and devices are no files."""
    return _scan(path, frozenset())


def _scan(path: Path, above: frozenset[Path]) -> Folder:
    folders: list[Folder] = []
    images: list[Path] = []
    others: list[Path] = []
    above = above | {path.resolve()}
    for child in _children(path):
        if child.is_dir():
            if child.resolve() not in above and not _is_run(child):
                folders.append(_scan(child, above))
        elif child.is_file():
            (images if child.suffix.lower() in pixels.endings() else others).append(child)
    return Folder(path, tuple(folders), tuple(images), tuple(others))


def _children(path: Path) -> Iterator[Path]:
    try:
        names = sorted(os.listdir(path))
    except OSError as error:
        raise PotstillError(f"{path}: cannot be read ({error.strerror}); fix its rights, or remove it.") from error
    return (path / name for name in names if not name.startswith((".", "__MACOSX")))


def _is_run(path: Path) -> bool:
    """Whether potstill wrote it: results beside the data must not become data."""
    if not (path / "config.json").is_file():
        return False
    try:
        told = files.read_json(path / "config.json")
    except PotstillError:
        return False
    return isinstance(told, dict) and told.keys() - {"format"} == {"version", "config"}


# --- classes and parts ---------------------------------------------------------------------------------------------


def holds_classes(root: Folder) -> bool:
    """Whether images lie in several folders as those of classes do: directly in the folders of it, or of its parts."""
    classes = [child for child in root.folders if child.is_class]
    if len(classes) > 1 and not all(part_of(child.path.name) for child in classes):
        return True
    return any(part_of(child.path.name) and len(child.bearing) > 1 for child in root.folders)


def read(root: Folder) -> Found:
    """The images of each class in each part.

    Raises:
        PotstillError: it is not clear which folders are the classes or the parts; what was seen is named.
    """
    root = _without_wrappers(root)
    parts = _parts(root)
    train = parts["train"]
    if train.is_class or not train.bearing:
        raise PotstillError(
            f"{train.path}: holds {len(train.all_images)} images and no class folders; expected one folder a class, "
            "or a table of file names and labels (metadata.csv)."
        )
    names = _class_names(train)
    _check_level(train)
    numbers = {name: label for label, name in enumerate(names.values())}
    found: dict[Part, Raw] = {}
    notes: list[str] = []
    for part, folder in parts.items():
        labelled = _labelled(folder, names, train.path)
        if labelled is None:
            notes.append(f"{folder.path.name}/ holds {len(folder.all_images)} images without labels and is left aside")
            continue
        images, labels = [entry for entry, _ in labelled], [numbers[name] for _, name in labelled]
        found[part] = Raw(images, labels, str(folder.path))
    if others := [file for part in found for child in parts[part].bearing for file in child.all_others]:
        kinds = ", ".join(sorted({file.suffix or file.name for file in others})[:NAMED])
        notes.append(f"{len(others)} files in the class folders are no images and were not read ({kinds})")
    return Found(found, _meanings(root, names), tuple(notes))


def _without_wrappers(root: Folder) -> Folder:
    while len(root.folders) == 1 and not root.images and root.folders[0].folders:
        if part_of(root.folders[0].path.name):  # then what lies in it are the classes
            return root
        root = root.folders[0]
    return root


def _parts(root: Folder) -> dict[Part, Folder]:
    """The folder of each part; the whole is for training where there are none."""
    bearing = root.bearing
    named = [child for child in bearing if part_of(child.path.name)]
    rest = [child.name for child in bearing if child not in named]
    if not named or (rest and all(child.is_class for child in named)):
        return {"train": root}
    if rest:
        raise PotstillError(
            f"{root.path}: {named[0].name}/ is named as a part of a dataset, and {_some(rest)} beside it as no part; "
            "give the folder that holds the classes, or move what does not belong there."
        )
    parts: dict[Part, Folder] = {}
    for child in named:
        part = part_of(child.path.name) or "train"
        if part in parts:
            raise PotstillError(
                f"{root.path}: {parts[part].name}/ and {child.name}/ are both named for {part}; join them, or move one."
            )
        parts[part] = child
    if "train" not in parts:
        raise PotstillError(f"{root.path}: holds {_some([child.name for child in named])}, but no part to train on.")
    return {part: parts[part] for part in ("train", "validation", "test") if part in parts}


def _class_names(train: Folder) -> dict[str, str]:
    """Each class's folder name → the class; the folders without images are named before any work is done."""
    for child in train.folders:
        if not child.all_images and not _holds_only_folders(child):
            others = len(child.all_others)
            seen = f" (none of its {others} files has the ending of one)" if others else ""
            raise PotstillError(
                f"{child.path}: class {child.name!r} has no images{seen}; add some, or remove the folder."
            )
    names = {child.path.name: child.name for child in train.bearing}
    if len(set(names.values())) < len(names):
        raise PotstillError(f"{train.path}: two of its folders have the same name as text; rename one of them.")
    return names


def _holds_only_folders(folder: Folder) -> bool:
    """Nothing but folders without files, as where potstill's runs lie, which were left out."""
    return any(child.is_dir() for child in folder.path.iterdir()) and not folder.all_others


def _check_level(train: Folder) -> None:
    """Refuse classes whose images all lie in folders further down that differ between them: which are the classes?"""
    inner = [{child.path.name for child in folder.bearing} for folder in train.bearing]
    if any(folder.images for folder in train.bearing) or all(len(names) == 1 for names in inner):
        return
    if len(set.union(*inner)) == sum(map(len, inner)):
        first = train.bearing[0]
        raise PotstillError(
            f"{train.path}: its images lie two folders deep, as in {first.name}/{first.bearing[0].name}; are the "
            f"classes {_some([child.name for child in train.bearing])}, or the folders below? Put the images of each "
            "class into one folder without folders inside."
        )


def _labelled(
    folder: Folder, names: dict[str, str], train: Path
) -> list[tuple[tuple[str, Path], str]] | None:  # fmt: skip
    """Each image of a part with its class; None where nothing tells the classes.

    Raises:
        PotstillError: a class that the training part lacks.
    """
    if folder.path != train:
        if listed := _listed(folder, names):
            return listed
        if not folder.bearing or (len(folder.bearing) == 1 and folder.bearing[0].name not in names.values()):
            return None  # all in one place: images/, or right here
    unknown = sorted(child.name for child in folder.bearing if child.name not in names.values())
    if unknown:
        raise PotstillError(f"{folder.path}: class {unknown[0]!r} has no folder in {train}; rename or remove it.")
    return [((readable(image), image), child.name) for child in folder.bearing for image in child.all_images]


def _listed(folder: Folder, names: dict[str, str]) -> list[tuple[tuple[str, Path], str]]:
    """Images by a part's own list, as in Tiny ImageNet's val_annotations.txt: file <tab> class <tab> a box."""
    path = next((file for file in folder.others if file.name.endswith("annotations.txt")), None)
    if path is None:
        return []
    at = {image.name: image for image in folder.all_images}
    found = []
    for number, line in enumerate(path.read_text("utf-8", "backslashreplace").splitlines(), 1):
        name, _, rest = line.partition("\t")
        label = rest.partition("\t")[0].strip()
        if not line.strip():
            continue
        if name not in at or label not in names:
            what = f"class {label!r} has no folder" if name in at else f"there is no file {name!r}"
            raise PotstillError(f"{path}, line {number}: {what}; mend the line, or remove it.")
        found.append(((readable(at[name]), at[name]), names[label]))
    return found


def _meanings(root: Folder, names: dict[str, str]) -> Sequence[str]:
    """The classes in the order of their folders, by what words.txt says where it knows all of them."""
    path = next((file for file in root.others if file.name == WORDS), None)
    if path is None:
        return tuple(names.values())
    lines = (line.partition("\t") for line in path.read_text("utf-8", "backslashreplace").splitlines())
    words = {key.strip(): meaning.strip() for key, _, meaning in lines if meaning.strip()}
    if not set(names) <= set(words):
        return tuple(names.values())
    short = [words[name].partition(",")[0] for name in names]
    return short if len(set(short)) == len(short) else [f"{words[name]} ({name})" for name in names]


def _some(names: Sequence[str]) -> str:
    listed = ", ".join(names[:NAMED])
    return listed if len(names) <= NAMED else f"{listed}, … ({len(names)})"
