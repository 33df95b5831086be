"""How many threads torch gets: cores and quotas, sharing, small networks; and the warning where threads do harm."""

import os
import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from lr_lightning import LRSchedule, _threads
from lr_lightning._threads import SHARE, core_share, multiply_adds, threads_for, usable_cores
from lr_lightning.schedules import Constant
from tests.callbacks.tiny import QUIET, Tiny, loader


@pytest.fixture(autouse=True)
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(_threads.ThreadWatch, "_warned", False)


@pytest.mark.parametrize(
    ("cgroup", "files", "cores"),
    [
        ("0::/\n", {}, 16),
        ("0::/\n", {"cpu.max": "max 100000"}, 16),
        ("0::/\n", {"cpu.max": "400000 100000"}, 4),
        ("0::/\n", {"cpu.max": "150000 100000"}, 1),
        ("0::/\n", {"cpu.max": "20000 100000"}, 1),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),  # a parent's
        ("0::/docker/1\n", {"cpu.max": "200000 100000"}, 2),  # the path is the host's, the files are the container's
        ("0::/../x\n", {"x/cpu.max": "200000 100000"}, 2),
        ("1:cpu,cpuacct:/j\n0::/\n", {"cpu,cpuacct/j/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_quota_us": "1",
          "cpu,cpuacct/j/cpu.cfs_period_us": "50000"}, 5),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 16),
        ("4:memory:/\n", {"memory/cpu.max": "100000 100000"}, 16),
        ("0::/\n", {"cpu.max": "nonsense"}, 16),
        ("nonsense\n", {}, 16),
        ("0::/\n", {"cpu.max": "9900000 100000"}, 16),  # more than the affinity allows
    ],
)  # fmt: skip
def test_affinity_and_quotas_of_both_versions_of_cgroups_limit_the_cores(tmp_path, cgroup, files, cores):
    for name, text in {"proc/self/cgroup": cgroup, **{f"sys/fs/cgroup/{k}": v for k, v in files.items()}}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert usable_cores(tmp_path) == cores


def test_without_cgroups_the_affinity_counts(tmp_path):
    assert usable_cores(tmp_path) == 16


def test_ranks_search_workers_and_loader_workers_share_the_cores(monkeypatch):
    monkeypatch.setattr(_threads, "usable_cores", lambda root=Path("/"): 16)
    assert core_share() == threads_for() == 16
    assert threads_for(processes=2) == 8
    assert threads_for(helpers=5) == 11
    monkeypatch.setenv(SHARE, "4")
    assert threads_for(processes=2) == 2
    assert threads_for(processes=2, helpers=7) == threads_for(processes=64) == 1


def test_what_the_user_has_set_holds(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_for(nn.Linear(2, 2), (1, 2)) == 3


def test_a_small_network_gets_one_thread():
    net = nn.Conv2d(3, 8, 3, padding=1)
    assert multiply_adds(net, (10, 3, 8, 8)) == 10 * 8 * 8 * 3 * 9 * 8
    assert multiply_adds(net, (10, 5)) == float("inf")  # the network refuses this shape
    assert multiply_adds(nn.Linear(100, 10), (10, 100), limit=1e3) == float("inf")
    assert threads_for(net, (10, 3, 8, 8)) == 1
    assert threads_for(net, (1000, 3, 32, 32)) > 1


def test_counting_leaves_the_network_and_the_random_state_alone():
    net = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    assert multiply_adds(net, (5, 4)) == 5 * 4 * 2
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())
    assert torch.equal(torch.get_rng_state(), state)


def fit(steps: int) -> None:
    trainer = pl.Trainer(max_steps=steps, max_epochs=-1, callbacks=[LRSchedule(Constant())], **QUIET)
    trainer.fit(Tiny(), loader())


def test_threads_that_wait_for_each_other_are_told_once(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(_threads, "_time_operations", lambda threads: (20.0, 0.1))
    with pytest.warns(UserWarning, match=r"8 threads, which wait .* 200 times .* torch.set_num_threads\(1\)"):
        fit(25)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*threads, which wait")
        fit(25)


@pytest.mark.parametrize(("threads", "probe"), [(1, (20.0, 0.1)), (8, (0.2, 0.1)), (8, (1e-9, 1e-10))])
def test_threads_that_do_no_harm_are_not_told(monkeypatch, threads, probe):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(_threads, "_time_operations", lambda threads: probe)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*threads, which wait")
        fit(65)


def test_the_probe_times_the_same_work_twice():
    assert all(seconds > 0 for seconds in _threads._time_operations(2))
