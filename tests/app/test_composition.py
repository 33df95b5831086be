"""The texts of `--help`, answers to mistyped keys, and what composing changes in a process."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig, OmegaConf

from lr_lightning.app.commands.hydra_main import _usage
from lr_lightning.app.composition import (
    _OTHER_NAMES,
    _keys,
    _remedy,
    choices_help,
    compose_config,
    prepare,
    readable,
    refuse_options,
    validate,
    wants_tracebacks,
)
from lr_lightning.errors import ConfigError
from lr_lightning.tracking.keys import flatten
from tests.test_commands import AWKWARD

Compose = Callable[..., DictConfig]

CONF = Path(__file__).resolve().parent.parent.parent / "conf"

UNLISTED = {"name", "_target_", "kwargs", "apply"}  # of a search that trains nothing

CHOICES = sorted((f.parent.name, f.stem) for f in CONF.glob("*/*.yaml"))


def test_the_help_has_a_line_for_every_choice() -> None:
    lines = choices_help(CONF.parent).splitlines()
    said = {line.split()[0]: line.split(maxsplit=1)[1:] for line in lines if line.startswith("  ")}
    assert {choice for _, choice in CHOICES} <= set(said)
    assert [choice for choice, text in said.items() if not text] == []
    assert max(map(len, lines)) <= 160
    assert "  cosine               Half a cosine to zero after a warmup" in lines  # the first sentence, no source


def test_the_help_of_find_lr_is_its_own(composed: Compose) -> None:
    command = [sys.executable, str(CONF.parent / "scripts" / "find_lr.py"), "--help"]
    text = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert text.startswith("Search for a learning rate, without training;")
    assert "It trains nothing" in text
    assert "train.py schedule" not in text
    for choice in ("range_test", "race", "lr_grid"):
        keys = set(flatten(OmegaConf.to_container(composed(f"finder={choice}").finder)))
        listed = text.partition(f"Keys of finder={choice}")[2].partition("\n\n")[0]
        assert set(re.findall(r"^  finder\.(\w+)  +\S", listed, flags=re.MULTILINE)) == keys - UNLISTED, choice
    examples = re.findall(r"^  python scripts/find_lr\.py (\S+=\S+(?: \S+=\S+)*)", text, flags=re.MULTILINE)
    assert len(examples) == 3
    for example in examples:
        words = example.split()
        finder = [] if any(word.startswith("finder=") for word in words) else ["finder=range_test"]  # its default
        validate(composed(*words, *finder))


def test_the_help_of_train_has_no_keys_of_a_search() -> None:
    assert _usage("train").splitlines()[1].startswith("  python scripts/train.py schedule=")
    assert "finder." not in _usage("train")


def test_a_rank_that_lightning_starts_prints_errors_as_the_first_one_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HYDRA_FULL_ERROR", "LR_LIGHTNING_SET_HYDRA_FULL_ERROR"):
        monkeypatch.setenv(name, "1")
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert not wants_tracebacks()
    prepare(tmp_path)
    assert not wants_tracebacks()  # in a child, which has its environment
    monkeypatch.delenv("LR_LIGHTNING_SET_HYDRA_FULL_ERROR")
    assert wants_tracebacks()
    prepare(tmp_path)
    assert wants_tracebacks()


def test_a_text_that_hydras_grammar_cannot_read_is_read_as_it_is() -> None:
    values = [value for value in AWKWARD if value not in ("null", "", "/a\\,b")]  # the last is quoted for Hydra by hand
    words = readable([f"+tracking.tags.n{i}={value}" for i, value in enumerate(values)])
    cfg, _ = compose_config(CONF.parent, [*words, *readable(["output_root=/a b=[c],é", "tracking.run_name=007"])])
    expected = [str(Path(value).expanduser()) if value.startswith("~") else value for value in values]
    assert list(cfg.tracking.tags.values()) == expected
    assert (cfg.output_root, cfg.tracking.run_name) == ("/a b=[c],é", "007")


def test_what_hydra_reads_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kept = [
        "-m",
        "seed=0,1",
        "schedule=cosine,wsd",
        "tracking.run_name=a,b",
        "output_root='/a b'",
        "resume=null",
        "~seed",
    ]
    kept += ["output_root=choice(/a,/b)", "data.batch_size=[1", "output_root=${hydra:runtime.cwd}/x", "model.lr=x=y"]
    assert readable(kept) == kept
    assert readable(["-m", "output_root=/a,/b"]) == ["-m", "output_root=/a,/b"]  # two values
    folder = tmp_path / "a,b"
    folder.mkdir()
    assert readable(["-m", f"output_root={folder}"]) == ["-m", f"output_root='{folder}'"]
    assert readable(["callbacks.cost.target=val/acc>=0.97"]) == ["callbacks.cost.target='val/acc>=0.97'"]


def test_an_override_that_cannot_be_read_is_shown_as_it_is_typed() -> None:
    with pytest.raises(ConfigError) as caught:
        compose_config(CONF.parent, ["model.kwargs.x=a=b"])
    remedy = """If the value is text, type 'model.kwargs.x='"'"'a=b'"'"''"""
    assert str(caught.value) == f"cannot read the override 'model.kwargs.x=a=b'. {remedy}"


def test_a_home_that_is_not_known_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pathlib.os.path.expanduser", lambda path: path)  # nor has this user an entry
    with pytest.raises(ConfigError, match="output_root: ~/runs needs HOME, which is not set"):
        readable(["output_root=~/runs"])


@pytest.fixture
def mlflows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://store.test")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")


@pytest.mark.parametrize(
    ("overrides", "uri", "experiment"),
    [
        ([], "http://store.test", "theirs"),
        (["tracking.experiment=null"], "http://store.test", "theirs"),
        (["tracking.uri=http://mine.test", "tracking.experiment=mine"], "http://mine.test", "mine"),
        (["tracking.root=/here"], None, "theirs"),
        (["tracking=csv"], None, "lr_lightning"),
    ],
)
def test_mlflows_variables_say_what_the_config_does_not(
    composed: Compose, mlflows: None, overrides: list[str], uri: str | None, experiment: str
) -> None:
    node = validate(composed(*overrides)).tracking
    assert (node.uri, node.experiment_name) == (uri, experiment)


def test_tags_of_mlflows_variable_are_the_runs(composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_CONTEXT", '{"team": "a", "round": 7}')
    assert validate(composed("+tracking.tags.team=b")).tracking.tags == {"team": "b", "round": "7"}
    monkeypatch.setenv("MLFLOW_RUN_CONTEXT", "team a")
    with pytest.raises(
        ConfigError, match=r"MLFLOW_RUN_CONTEXT: 'team a' is no JSON object of tags\. Correct or unset it"
    ):
        validate(composed())


def test_a_value_of_mlflows_variable_that_is_no_store_names_it(
    composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    with pytest.raises(ConfigError, match=r"^MLFLOW_TRACKING_URI: '\./mlruns' is no address of a store"):
        validate(composed())
    assert validate(composed("tracking.root=/here")).tracking.uri is None


def test_without_them_the_store_is_the_checkouts(composed: Compose) -> None:
    node = validate(composed("tracking.experiment=null")).tracking
    assert (node.uri, node.experiment_name) == (None, "lr_lightning")


def test_a_time_without_a_unit_is_refused(composed: Compose) -> None:
    with pytest.raises(ConfigError, match=r"^trainer\.kwargs\.max_time: 2 has no unit\. Give '00:00:30:00'"):
        validate(composed("+trainer.kwargs.max_time=2"))


@pytest.mark.parametrize("words", [["train.py", "--help"], ["compare.py", "--help"], ["train.py", "nokey=1"]])
def test_a_reader_that_leaves_is_no_error(words: list[str], tmp_path: Path) -> None:
    script = f"{sys.executable} {CONF.parent}/scripts/{' '.join(words)} 2>&1 | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["/bin/bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (2 if "nokey=1" in words else 0, "")


@pytest.fixture(scope="module")
def cfg() -> DictConfig:
    prepare(CONF.parent)
    return compose_config(CONF.parent, ["data=image_folder"])[0]


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("lr=0.1", "Type optimizer.lr=0.1"),
        ("learning_rate=1e-2", "Type optimizer.lr=1e-2"),
        ("optimizer.learning_rate=0.1", "Type optimizer.lr=0.1"),
        ("schedule.lr=0.1", "Type optimizer.lr=0.1"),
        ("max_epochs=3", "Type trainer.max_epochs=3"),
        ("trainer.epochs=3", "Type trainer.max_epochs=3"),
        ("batch_size=32", "Type data.batch_size=32"),
        ("data.bs=32", "Type data.batch_size=32"),
        ("momentum=0.8", "Type optimizer.momentum=0.8"),
        ("seeds=3", "Type seed=3"),
        ("model.width=3", "Type model.kwargs.width=3"),
        ("model.kwargs.widht=3", "Type model.kwargs.width=3"),
        ("optimizer.weight_decy=3", "Type optimizer.weight_decay=3"),
        ("scheduler=cosine", "Type schedule=cosine"),
        ("schdule=cosine", "Type schedule=cosine"),
        ("run_name=a b", "Type 'tracking.run_name=a b'"),
        ("max_lr=1", "schedule=cosine has none. Type schedule=triangular schedule.max_lr=1 (or schedule=triangular2,"),
        ("optimizer.alpha=1", "optimizer=sgd has none. Type optimizer=rmsprop optimizer.alpha=1"),
        ("monitor=a", "Type callbacks.checkpoint.monitor=a or callbacks.early_stopping.monitor=a"),
        ("path=/a", "Type data.root=/a"),  # of an image folder
        ("model.kwargs.foo=3", ""),
        ("zzz=3", ""),
    ],
)
def test_a_key_that_does_not_exist_is_answered_with_the_one_to_type(cfg: DictConfig, word: str, answer: str) -> None:
    assert _remedy(cfg, word).startswith(answer)
    assert bool(_remedy(cfg, word)) == bool(answer)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["epochs=3", "optimizer=adam", "nesterov=true", "bs=32"],
            [
                "epochs: there is no such key. Type trainer.max_epochs=3",
                "nesterov: there is no such key. optimizer=adam has none. Type optimizer=sgd optimizer.nesterov=true",
                "bs: there is no such key. Type data.batch_size=32",
            ],
        ),
        (["+lr=0.1"], ["lr: there is no such key. Type optimizer.lr=0.1"]),
        (["zzz=3"], ["zzz: there is no such key. `--cfg job` shows every key."]),
        (
            ["data=image_folder", "data.root=x", "trainer.epochs=2"],
            ["trainer.epochs: there is no such key. Type trainer.max_epochs=2"],
        ),
    ],
)
def test_every_key_of_a_command_that_does_not_exist_has_its_line(words: list[str], said: list[str]) -> None:
    prepare(CONF.parent)
    with pytest.raises(ConfigError) as refused:
        validate(compose_config(CONF.parent, words)[0])
    assert str(refused.value).splitlines() == said


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--batch-size", "32"], "--batch-size: there is no such option. Type data.batch_size=32"),
        (["--lr=0.1"], "--lr: there is no such option. Type optimizer.lr=0.1"),
        (["-lr", "seed=1"], "-lr: there is no such option. Type optimizer.lr=VALUE"),
        (["--foo", "1"], "--foo: there is no such option. A key is set with key=value; see `--help`."),
    ],
)
def test_an_option_that_does_not_exist_is_answered_with_the_key(words: list[str], answer: str) -> None:
    prepare(CONF.parent)
    with pytest.raises(ConfigError) as refused:
        refuse_options(CONF.parent, words)
    assert str(refused.value) == answer


def test_a_command_without_a_word_is_taken() -> None:
    refuse_options(CONF.parent, [])


def test_the_options_of_hydra_are_taken_also_shortened() -> None:
    for action in get_args_parser()._actions:
        for option in action.option_strings:
            refuse_options(CONF.parent, [option, "seed=1"])
    refuse_options(CONF.parent, ["--multi", "seed=1,2", "--cfg=job", "-c", "job", "-1"])


def test_every_other_name_stands_for_a_key_that_some_choice_has(cfg: DictConfig) -> None:
    assert set(_OTHER_NAMES) <= set(_keys(cfg))
    names = [name for others in _OTHER_NAMES.values() for name in others.split()]
    assert len(names) == len(set(names))


def test_a_path_with_an_interpolation_in_its_name_is_refused_with_the_remedy(tmp_path: Path) -> None:
    folder = tmp_path / "a${x}"
    folder.mkdir()
    with pytest.raises(ConfigError, match=r"^data\.root: '.*a\$\{x\}' exists, but .*ln -s '.*a\$\{x\}' LINK$"):
        readable([f"data.root={folder}"])
    assert readable(["data.root=${oc.env:HOME}"]) == ["data.root=${oc.env:HOME}"]
