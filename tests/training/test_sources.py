"""Every source of images: digits, parquet files, folders and the hub."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lr_lightning.errors import DataError
from lr_lightning.training import sources
from lr_lightning.training.decode import choose_format

from .made_up import PICTURES, decoded, labelled, save_tree


def write(path, images, labels, *, image="image", label="label", struct=True, names=None):
    column = [{"bytes": content, "path": None} for content in images] if struct else images
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if struct else pa.binary()
    table = pa.table({image: pa.array(column, kind), "extra": range(len(labels)), label: labels})
    if names:
        features = {label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=3)
    return path


def test_digits_are_split_with_a_stratified_test_fifth():
    raw = sources.digits()
    assert (len(raw.train), raw.val, len(raw.test)) == (1438, None, 359)
    assert raw.train.array.shape == (1438, 1, 8, 8)
    assert raw.train.array.max() == 255
    assert raw.class_names == tuple("0123456789")
    assert np.abs(np.bincount(raw.test.labels) - np.bincount(raw.train.labels) / 4).max() <= 1
    assert np.array_equal(raw.test.labels, sources.digits().test.labels)


@pytest.mark.parametrize("struct", [True, False])
@pytest.mark.parametrize(("image", "label"), [("image", "label"), ("img", "fine_label")])
def test_parquet_finds_its_columns_and_names(tmp_path, monkeypatch, struct, image, label):
    columns = {"image": image, "label": label, "struct": struct, "names": ["cat", "dog"]}
    write(tmp_path / "train.parquet", PICTURES, [0, 1] * 4, **columns)
    write(tmp_path / "test.parquet", PICTURES[:3], [1, 1, 0], **columns)
    monkeypatch.chdir(tmp_path)
    raw = sources.parquet("train.parquet", "test.parquet")
    assert raw.class_names == ("cat", "dog")
    assert raw.name == tmp_path.name
    assert raw.train.labels.tolist() == [0, 1] * 4
    assert raw.test.labels.tolist() == [1, 1, 0]
    assert list(raw.train.encoded) == PICTURES
    assert raw.val is None


@pytest.mark.parametrize(
    ("train", "test", "names", "indices"),
    [
        (["b", "a", "c"], ["c"], ("a", "b", "c"), [1, 0, 2]),
        ([10, 7, 8], [7], ("7", "8", "10"), [2, 0, 1]),
        ([True, False, True], [True], ("0", "1"), [1, 0, 1]),
    ],
)
def test_labels_without_names_are_sorted(tmp_path, train, test, names, indices):
    paths = [write(tmp_path / f"{len(x)}.parquet", PICTURES[: len(x)], x) for x in (train, test)]
    raw = sources.parquet(*paths)
    assert raw.class_names == names
    assert raw.train.labels.tolist() == indices
    assert raw.test.labels.tolist() == [names.index(str(int(test[0]) if test[0] is True else test[0]))]


@pytest.mark.parametrize(
    ("columns", "labels", "message"),
    [
        ({"image": "picture"}, [0], r"no image column 'image' or 'img'; its columns are 'picture', 'extra', 'label'\."),
        (
            {"label": "class"},
            [0],
            r"no label column 'label' or .*; its columns are 'image', 'extra', 'class'\. Name one",
        ),
        ({}, [0.5], "expected integers or strings in column 'label' of .*, got double"),
        ({}, [None], "row 0 of .* has no label"),
    ],
)
def test_columns_that_cannot_be_used_are_named(tmp_path, columns, labels, message):
    path = write(tmp_path / "x.parquet", PICTURES[:1], labels, **columns)
    with pytest.raises(DataError, match=f"^data.train: .*{message}"):
        sources.parquet(path)


def test_a_column_asked_for_is_taken(tmp_path):
    path = write(tmp_path / "x.parquet", PICTURES[:3], [0, 0, 0], image="picture")
    raw = sources.parquet(path, image_column="picture", label_column="extra")
    assert raw.train.labels.tolist() == [0, 1, 2]
    with pytest.raises(DataError, match="no label column 'nothing'"):
        sources.parquet(path, image_column="picture", label_column="nothing")
    with pytest.raises(DataError, match="expected encoded images"):
        sources.parquet(path, image_column="extra")


def test_an_unknown_label_and_mixed_labels_are_refused(tmp_path):
    train = write(tmp_path / "a.parquet", PICTURES[:2], ["x", "y"], names=["x", "y"])
    with pytest.raises(DataError, match=r"^data.test: .*b\.parquet has the label 'z'"):
        sources.parquet(train, write(tmp_path / "b.parquet", PICTURES[:1], ["z"]))
    with pytest.raises(DataError, match="integers in one split and strings in another"):
        sources.parquet(train, write(tmp_path / "c.parquet", PICTURES[:1], [0]))


def test_a_missing_or_foreign_file_is_named(tmp_path):
    with pytest.raises(DataError, match=rf"^data.train: no such file: {tmp_path}/x\.parquet\. Give"):
        sources.parquet(tmp_path / "x.parquet")
    (tmp_path / "x.parquet").write_text("hello, this is no parquet file")
    with pytest.raises(DataError, match=r"^data.train: .*x\.parquet is not a readable parquet file"):
        sources.parquet(tmp_path / "x.parquet")


@pytest.mark.parametrize("row", [0, 4])
def test_a_row_without_an_image_is_named(tmp_path, row):
    raw = sources.parquet(write(tmp_path / "x.parquet", [*PICTURES[:row], None, *PICTURES[row:4]], [0] * 5))
    with pytest.raises(DataError, match=rf"^data: row {row} of .*/x\.parquet cannot be read \(there is no image"):
        choose_format([raw.train], None)


def test_a_folder_for_each_class(tmp_path):
    save_tree(tmp_path / "pets", {"dog": 2, "cat": 3})
    (tmp_path / "pets" / "README.txt").write_text("not in a class")
    (tmp_path / "pets" / "cat" / ".hidden").write_text("x")
    (tmp_path / "pets" / ".git").mkdir()
    raw = sources.image_folder(tmp_path / "pets")
    assert raw.class_names == ("cat", "dog")
    assert raw.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert (raw.name, raw.val, raw.test) == ("pets", None, None)
    assert decoded(raw.train).shape == (5, 3, 5, 6)


@pytest.mark.parametrize("val", ["val", "valid", "validation", None])
def test_folders_of_splits(tmp_path, monkeypatch, val):
    save_tree(tmp_path / "pets" / "train", {"dog": 2, "cat": 3})
    save_tree(tmp_path / "pets" / "test", {"dog": 1})
    if val:
        save_tree(tmp_path / "pets" / val, {"cat": 1, "dog": 1})
    monkeypatch.chdir(tmp_path)
    raw = sources.image_folder("pets")
    assert raw.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert raw.test.labels.tolist() == [1]
    assert (raw.val.labels.tolist() if val else raw.val) == ([0, 1] if val else None)


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(DataError, match=rf"^data.root: no such folder: {tmp_path}/none\. Give"):
        sources.image_folder(tmp_path / "none")
    (tmp_path / "flat").mkdir()
    with pytest.raises(DataError, match=r"^data.root: .*/flat has no folders in it"):
        sources.image_folder(tmp_path / "flat")
    save_tree(tmp_path / "pets", {"dog": 1, "cat": 0})
    with pytest.raises(DataError, match=r"^data.root: the class folder .*/pets/cat is empty"):
        sources.image_folder(tmp_path / "pets")


def shards(folder):
    """Two files of one split, and one of another, as the hub names them."""
    folder.mkdir()
    write(folder / "train-00000-of-00002.parquet", PICTURES[:3], [0, 1, 0])
    write(folder / "train-00001-of-00002.parquet", PICTURES[3:5], [1, 0])
    write(folder / "test-00000-of-00001.parquet", PICTURES[5:], [0, 1, 1])
    return folder


def test_shards_are_a_pattern_a_folder_or_a_list(tmp_path):
    folder = shards(tmp_path / "set")
    files = sorted(folder.glob("train*"))
    (tmp_path / "only").mkdir()
    for file in files:
        (tmp_path / "only" / file.name).symlink_to(file)
    for train in (f"{folder}/train-*.parquet", files, tmp_path / "only", [f"{folder}/train-00000*", str(files[1])]):
        raw = sources.parquet(train, f"{folder}/test*.parquet")
        assert list(raw.train.encoded) == PICTURES[:5]
        assert raw.train.labels.tolist() == [0, 1, 0, 1, 0]
        assert list(raw.test.encoded) == PICTURES[5:]
        assert [raw.train.describe(row).split("/")[-1][:11] for row in (2, 3)] == ["train-00000", "train-00001"]
        assert [raw.train.describe(row).split()[1] for row in (2, 3)] == ["2", "0"]
    with pytest.raises(DataError, match=r"set holds files of several splits \(test, train\)\. Give a pattern"):
        sources.parquet(folder)
    with pytest.raises(DataError, match=r"^data\.train: no such file: .*/none\*\.parquet\."):
        sources.parquet(f"{folder}/none*.parquet")


def test_a_path_in_a_table_is_relative_to_its_file(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name / "images").mkdir(parents=True)
        for number in range(2):
            (tmp_path / name / "images" / f"{number}.png").write_bytes(PICTURES[number + 2 * (name == "b")])
        rows = [{"bytes": None, "path": f"images/{number}.png"} for number in range(2)]
        pq.write_table(pa.table({"image": rows, "label": [0, 1]}), tmp_path / name / "x.parquet")
    monkeypatch.chdir(tmp_path)
    raw = sources.parquet("*/x.parquet")
    assert np.array_equal(decoded(raw.train), decoded(labelled(*PICTURES[:4])))
    assert raw.train.encoded[3] == tmp_path / "b" / "images" / "1.png"
    assert raw.train.encoded[1:3] == [raw.train.encoded[1], raw.train.encoded[2]]


@pytest.mark.parametrize("labels", [[-1, -1], [None, None], None])
def test_a_test_split_without_labels_is_left_out_and_said(tmp_path, labels, caplog):
    caplog.set_level("INFO", "lr_lightning")
    train = write(tmp_path / "train.parquet", PICTURES[:4], [0, 1, 0, 1], names=["cat", "dog"])
    pictures = [{"bytes": content, "path": None} for content in PICTURES[:2]]
    table = pa.table({"image": pictures, **({} if labels is None else {"label": pa.array(labels, pa.int64())})})
    pq.write_table(table, tmp_path / "test.parquet")
    assert sources.parquet(train, tmp_path / "test.parquet").test is None
    assert "test.parquet has no labels, so there is no test set." in caplog.text
    caplog.clear()
    raw = sources.hub(str(tmp_path), cache_dir=tmp_path / "cache") if labels else None
    assert raw is None or (raw.test is None and "has no labels" in caplog.text)


def test_any_hub_set_is_read_by_the_kind_of_its_columns(tmp_path, caplog):
    datasets = pytest.importorskip("datasets")
    kinds = {
        "picture": datasets.Image(),
        "species": datasets.ClassLabel(names=["cat", "dog"]),
        "n": datasets.Value("int64"),
    }
    rows = {"picture": [{"bytes": content, "path": None} for content in PICTURES], "species": [0, 1] * 4, "n": [0] * 8}
    (tmp_path / "set").mkdir()
    for split in ("train", "validation"):
        datasets.Dataset.from_dict(rows, datasets.Features(kinds)).to_parquet(tmp_path / "set" / f"{split}.parquet")
    raw = sources.hub(str(tmp_path / "set"), cache_dir=tmp_path / "cache")
    assert (raw.class_names, len(raw.train), len(raw.val)) == (("cat", "dog"), 8, 8)
    assert list(raw.train.encoded) == PICTURES


@pytest.fixture
def hub_folder(tmp_path):
    (tmp_path / "set").mkdir()
    for split, count in (("train", 8), ("validation", 3), ("test", 2)):
        labels = [number % 2 for number in range(count)]
        write(tmp_path / "set" / f"{split}.parquet", PICTURES[:count], labels, image="img", names=["cat", "dog"])
    return tmp_path / "set"


def test_the_hubs_code_reads_a_local_folder(tmp_path, hub_folder):
    raw = sources.hub(str(hub_folder), cache_dir=tmp_path / "cache")
    assert (len(raw.train), len(raw.val), len(raw.test)) == (8, 3, 2)
    assert raw.train.labels.tolist() == [0, 1] * 4
    assert list(raw.train.encoded) == PICTURES


def test_the_hub_finds_names_and_images_of_a_published_set(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [{"bytes": content, "path": None} for content in PICTURES], "label": [0, 1] * 4}
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "set" / "train.parquet")
    raw = sources.hub(str(tmp_path / "set"), cache_dir=tmp_path / "cache")
    assert raw.class_names == ("cat", "dog")
    assert list(raw.train.encoded) == PICTURES
    assert decoded(raw.train).shape == (8, 3, 5, 6)
    assert sources.parquet(tmp_path / "set" / "train.parquet").class_names == ("cat", "dog")


def test_without_a_network_the_error_shows_the_way_to_local_files(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(sources, "_reachable", lambda endpoint: False)
    before = datasets.config.HF_HUB_OFFLINE
    with pytest.raises(DataError, match=r"^data.path: a/b is not in the local cache .* data=parquet data.train=FILE"):
        sources.hub("a/b", cache_dir=tmp_path)
    assert before == datasets.config.HF_HUB_OFFLINE


def test_without_a_network_the_cache_is_enough(tmp_path, monkeypatch, hub_folder):
    monkeypatch.setattr(sources, "_reachable", lambda endpoint: False)
    sources.hub(str(hub_folder), cache_dir=tmp_path / "cache")
    # The library names a set's folder in the cache after its id: make it that of a set from the hub.
    os.replace(tmp_path / "cache" / "set", tmp_path / "cache" / "a___set")
    raw = sources.hub("a/set", cache_dir=tmp_path / "cache")
    assert list(raw.train.encoded) == PICTURES
    assert raw.name == "set"


def test_the_probe_of_the_network_gives_up():
    assert sources._reachable("http://127.0.0.1:9") is False


def test_a_hub_set_without_train_or_columns_is_named(tmp_path):
    for folder, split, label in (("a", "test", "label"), ("b", "train", "class")):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / f"{split}.parquet", PICTURES[:2], [0, 1], label=label)
    with pytest.raises(DataError, match=r"^data.path: .* has no train split, only 'test'"):
        sources.hub(str(tmp_path / "a"), cache_dir=tmp_path / "cache")
    with pytest.raises(DataError, match=r"^data.path: the train split of .* has no label column"):
        sources.hub(str(tmp_path / "b"), cache_dir=tmp_path / "cache")
