"""Which folders are splits and which are classes, in the habits that people have."""

import logging
import os

import pytest

from lr_lightning.errors import DataError
from lr_lightning.training import sources
from lr_lightning.training.folders import find_splits

PETS = {"cat": 2, "dog": 3}


def tree(root, **folders):
    """Folders of empty files: a name with __ is a path, a number counts files, a mapping has class folders."""
    for name, inside in folders.items():
        path = root / name.replace("__", "/")
        path.mkdir(parents=True, exist_ok=True)
        if isinstance(inside, dict):
            tree(path, **inside)
        else:
            for number in range(inside):
                (path / f"{number}.png").touch()
    return root


def counts(root):
    return {
        split: {name: len(files) for name, files in classes.items()} for split, classes in find_splits(root).items()
    }


def said(caplog):
    return "\n".join(record.getMessage() for record in caplog.records)


@pytest.fixture(autouse=True)
def _notes(caplog):
    caplog.set_level(logging.INFO, "lr_lightning")


ONE_EACH = {"cat": 1, "dog": 1}


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train", "val", "test"), {"train", "val", "test"}),
        (("Training", "Testing"), {"train", "test"}),
        (("Train", "Test"), {"train", "test"}),
        (("TRAIN", "VALIDATION"), {"train", "val"}),
        (("seg_train", "seg_test"), {"train", "test"}),
        (("Training Set", "dev"), {"train", "val"}),
        (("train", "valid"), {"train", "val"}),
        (("train_images", "test-set"), {"train", "test"}),
        (("Train_data", "evaluation"), {"train", "test"}),
        (("train1", "test1"), {"train", "test"}),
        (("train2017", "val2017"), {"train", "val"}),
        (("cars_train", "cars_test"), {"train", "test"}),
        (("training Pets", "validation Pets"), {"train", "val"}),
        (("trainset", "testset"), {"train", "test"}),
        (("TrainingSet", "ValidationSet", "TestData"), {"train", "val", "test"}),
    ],
)
def test_names_of_splits(tmp_path, names, splits):
    first, *others = names
    tree(tmp_path, **{first: PETS}, **dict.fromkeys(others, ONE_EACH))
    assert counts(tmp_path) == {split: PETS if split == "train" else ONE_EACH for split in splits}


def test_classes_that_may_be_splits_are_pointed_at(tmp_path, caplog):
    tree(tmp_path, trainA=2, trainB=2, testA=1, testB=1)
    assert set(counts(tmp_path)["train"]) == {"trainA", "trainB", "testA", "testB"}
    assert "testA, trainA and the folders beside them are taken as classes. If they are splits, move" in said(caplog)


def test_what_is_left_over_is_named(tmp_path, caplog):
    tree(tmp_path, train=PETS, val=ONE_EACH, valid=ONE_EACH, test=ONE_EACH, extra=3, __MACOSX=ONE_EACH)
    assert set(counts(tmp_path)) == {"train", "val", "test"}
    assert [line.split()[1] for line in said(caplog).splitlines()] == [f"{tmp_path}/valid", f"{tmp_path}/extra"]


@pytest.mark.parametrize(
    "folders",
    [
        {"train": 3, "bus": 2, "car": 2},
        {"train": 3, "bus": 2, "test": 2},
        {"test": 3, "bus": 2},
        {"Train": 3, "bus": {"red": 2}},
        {"bullet_train": {"a": 1, "b": 1}, "test_tube": 2},
    ],
)
def test_a_class_that_is_named_as_a_split_stays_a_class(tmp_path, folders):
    tree(tmp_path, **folders)
    assert counts(tmp_path) == {
        "train": {name: sum(found.values()) if isinstance(found, dict) else found for name, found in folders.items()}
    }


def test_files_beside_the_folders_are_no_sign_of_a_class(tmp_path, caplog):
    tree(tmp_path, train=PETS, test=ONE_EACH, extra=3)
    (tmp_path / "train" / "ATTRIBUTION").touch()
    assert set(counts(tmp_path)) == {"train", "test"}
    for name in ("1.JPG", "2.png"):
        (tmp_path / "train" / name).touch()
    caplog.clear()
    assert set(counts(tmp_path)) == {"train", "test"}
    assert f"2 images in {tmp_path}/train lie outside of the class folders and are left out." in said(caplog)


@pytest.mark.parametrize(
    "folders",
    [
        {"pets": PETS},
        {"archive__pets": PETS},
        {"pets": {"Training": PETS}},
        {"train": {"train": PETS}},
    ],
)
def test_one_folder_too_deep_is_found_and_said(tmp_path, folders, caplog):
    assert counts(tree(tmp_path, **folders)) == {"train": PETS}
    assert "pets" not in folders or f"the folders in {tmp_path}/pets" in said(caplog)


def test_folders_of_splits_in_folders_of_their_name(tmp_path, caplog):
    tree(tmp_path, seg_train__seg_train=PETS, seg_test__seg_test=ONE_EACH, seg_pred__seg_pred=4)
    (tmp_path / "README.md").touch()
    assert counts(tmp_path) == {"train": PETS, "test": ONE_EACH}
    assert "seg_pred is left out" in said(caplog)


@pytest.mark.parametrize("test", [3, {"unknown": 3}, {"test": 3}, {}])
def test_a_test_folder_without_classes_is_for_prediction(tmp_path, caplog, test):
    tree(tmp_path, train=PETS, test=test)
    assert counts(tmp_path) == {"train": PETS}
    assert f"{tmp_path}/test has no folders of the training classes" in said(caplog)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({"train": 5, "test": 3}, r"/train has images, but no folder for each class\. Sort them into .*/train/CLASS"),
        ({"test": ONE_EACH, "val": ONE_EACH}, r"has no training folder, only val, test\. Add .*/train\."),
        ({"train": PETS, "bus": 2}, r"/train has folders of images, and so has .* beside it \(bus\)\. If train is"),
        (
            {"cat": 2, "dog": 2, "test": ONE_EACH},
            r"the split .*/test has the class folders cat, dog, but",
        ),
        ({"cat": {"train": 2, "test": 1}, "dog": {"train": 2}}, r"the splits test, train lie inside the class folder"),
        ({"cat": 2}, r"has cat alone\. Give a folder with two or more class folders\."),
        ({"train": {"cat": 2}}, r"has cat alone\. Give a folder with two"),
        (
            {"cat": 2, "dog": 2, "pets": PETS},
            r"class folders cat, dog, and .*/pets has folders of the same names\. Move",
        ),
        ({"cat": 2, "dog": 0}, r"the class folder .*/dog is empty\. Add images or remove"),
    ],
)
def test_what_cannot_be_told_is_one_sentence(tmp_path, folders, message):
    with pytest.raises(DataError, match=f"^data.root: .*{message}"):
        find_splits(tree(tmp_path, **folders))


def test_linked_folders_count_wherever_they_are_and_loops_end(tmp_path):
    elsewhere = tree(tmp_path / "elsewhere", more=4, birds=2)
    root = tree(tmp_path / "set", cat=1, dog=2)
    (root / "bird").symlink_to(elsewhere / "birds")
    (root / "cat" / "more").symlink_to(elsewhere / "more")
    (root / "cat" / "loop").symlink_to(root / "cat")
    (root / "cat" / "up").symlink_to(root)
    (root / "loop").symlink_to(tmp_path)
    (root / "dog" / "gone.png").symlink_to(tmp_path / "nothing")
    assert counts(root) == {"train": {"bird": 2, "cat": 5, "dog": 3}}  # the broken link is an unreadable image


def test_what_systems_leave_behind_is_no_image(tmp_path):
    tree(tmp_path, cat=2, dog=2, **{".git": 1, "@eaDir": 1})
    for name in (".DS_Store", "._0.png", "Thumbs.db", "desktop.ini"):
        (tmp_path / "cat" / name).touch()
    (tmp_path / "cat" / "9.JPG").touch()
    assert counts(tmp_path) == {"train": {"cat": 3, "dog": 2}}


def test_an_accent_is_one_letter_however_it_is_written(tmp_path):
    tree(tmp_path, train={"caf\u00e9": 1, "bar \u00df": 1}, test={"cafe\u0301": 2})
    assert counts(tmp_path) == {"train": {"bar \u00df": 1, "caf\u00e9": 1}, "test": {"caf\u00e9": 2}}


def test_a_held_out_class_may_be_written_with_other_capitals_and_spaces(tmp_path, caplog):
    tree(tmp_path, train={"Cat": 2, "Big dog": 2}, test={"cat": 1, "Big  Dog ": 3, "cow": 1})
    assert counts(tmp_path)["test"] == {"Cat": 1, "Big dog": 3, "cow": 1}
    assert "'Big  Dog ' is taken as 'Big dog', 'cat' is taken as 'Cat'." in said(caplog)
    tree(tmp_path, train={"cat": 1}, test={"CAT": 1})
    assert counts(tmp_path)["test"] == {"CAT": 1, "cat": 1, "Big  Dog ": 3, "cow": 1}


def test_folders_that_all_hold_the_same_folders_are_pointed_at(tmp_path, caplog):
    tree(tmp_path, fold1=PETS, fold2=PETS)
    assert counts(tmp_path) == {"train": {"fold1": 5, "fold2": 5}}
    assert "the classes are fold1, fold2, and each of these folders has the folders cat, dog. If cat, dog are" in said(
        caplog
    )


def test_names_that_are_no_utf8_are_classes_too(tmp_path):
    tree(tmp_path, cat=1)
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    os.mknod(os.fsencode(tmp_path) + b"/caf\xe9/\xff.png")
    raw = sources.image_folder(tmp_path)
    assert raw.class_names == ("caf\udce9", "cat")


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    tree(tmp_path, cat=1, dog=1)
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"^the folder .* cannot be read \(Permission denied\)"):
        find_splits(tmp_path)
