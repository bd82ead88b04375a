import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.backfill_model import Cluster, closed_form_s, simulate
from benchmarks.plan import SCENARIOS, Assumptions, plan, read_figures, shard_seconds

RESULTS = Path(__file__).resolve().parents[3] / "benchmarks" / "results"
CALM = Cluster(machines=2, slots=3, batch_shards=5, run_start_s=30.0)
SHARD_S = 20.0

# On a busy machine, too.
UNHURRIED = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
# A machine that lived less than a shard takes would never be done.
faulty = st.builds(
    Cluster,
    machines=st.integers(1, 6),
    slots=st.integers(1, 4),
    batch_shards=st.integers(1, 30),
    run_start_s=st.sampled_from([0.0, 30.0]),
    submitted_per_s=st.sampled_from([9.0, math.inf]),
    spread=st.sampled_from([0.0, 0.3]),
    failing=st.sampled_from([0.0, 0.1, 1.0]),
    mean_life_s=st.sampled_from([2_000.0, 50_000.0, math.inf]),
    noticed_s=st.just(18.0),
    replaced_s=st.just(600.0),
)


@UNHURRIED
@given(faulty, st.integers(1, 120), st.integers(0, 3))
def test_every_shard_is_finished_exactly_once(cluster, shards, seed):
    done = simulate(shards, SHARD_S, cluster, seed)
    assert done.times_finished == [1] * shards


@UNHURRIED
@given(faulty, st.integers(1, 120), st.integers(0, 3))
def test_it_is_never_faster_than_all_slots_at_work_all_the_time(cluster, shards, seed):
    done = simulate(shards, SHARD_S, cluster, seed)
    assert done.seconds * cluster.machines * cluster.slots >= (done.work_s + done.lost_s) * (1 - 1e-9)


@UNHURRIED
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4))
def test_without_faults_it_is_the_closed_form(runs, machines, slots):
    cluster = replace(CALM, machines=machines, slots=slots)
    shards = runs * cluster.batch_shards
    expected = closed_form_s(shards, SHARD_S, cluster)
    assert simulate(shards, SHARD_S, cluster).seconds == pytest.approx(expected)


@UNHURRIED
@given(st.integers(1, 120), st.integers(1, 6), st.integers(0, 3), st.sampled_from([9.0, math.inf]))
def test_another_machine_never_makes_it_slower(shards, machines, seed, submitted_per_s):
    cluster = replace(CALM, machines=machines, spread=0.4, submitted_per_s=submitted_per_s)
    more = simulate(shards, SHARD_S, replace(cluster, machines=machines + 1), seed)
    assert more.seconds <= simulate(shards, SHARD_S, cluster, seed).seconds + 1e-6


def test_machines_beyond_the_runs_change_nothing():
    enough = replace(CALM, machines=20)
    assert simulate(100, SHARD_S, enough) == simulate(100, SHARD_S, replace(enough, machines=40))


def test_it_cannot_be_faster_than_shards_are_submitted():
    cluster = replace(CALM, machines=100, submitted_per_s=1.0)
    assert simulate(500, SHARD_S, cluster).seconds >= 500


def test_faults_cost_time_and_are_counted():
    calm = simulate(500, SHARD_S, CALM)
    lossy = simulate(500, SHARD_S, replace(CALM, mean_life_s=900, noticed_s=18, replaced_s=600))
    failing = simulate(500, SHARD_S, replace(CALM, failing=0.2))
    assert (calm.machines_lost, calm.lost_s, calm.runs) == (0, 0, 100)
    assert lossy.machines_lost > 0
    assert lossy.lost_s > 0
    assert failing.lost_s > 0
    assert min(lossy.seconds, failing.seconds) > calm.seconds
    assert min(lossy.runs, failing.runs) > calm.runs


def test_equal_seeds_give_equal_plans():
    cluster = replace(CALM, spread=0.4, mean_life_s=5_000, replaced_s=60)
    assert simulate(200, SHARD_S, cluster, 7) == simulate(200, SHARD_S, cluster, 7)
    assert simulate(200, SHARD_S, cluster, 7) != simulate(200, SHARD_S, cluster, 8)


def test_the_kept_plan_is_of_the_figures_that_are_measured_now():
    kept = json.loads((RESULTS / "plan.json").read_text())
    figures = read_figures()
    assert {name: figure["value"] for name, figure in kept["figures"].items()} == pytest.approx(
        {name: figure.value for name, figure in figures.items()}
    ), "run make plan, and put its figures into docs/scale.md"
    for name, scenario in SCENARIOS.items():
        seconds = shard_seconds(figures, Assumptions(), scenario.machines)
        assert kept["shard_seconds"][name] == pytest.approx(seconds)
    name = "1 machine"
    assert kept["plans"][name] == pytest.approx(plan(figures, Assumptions(), SCENARIOS[name]))


def test_every_figure_is_one_that_was_measured():
    for figure in read_figures().values():
        assert figure.value > 0
        name = figure.source.split(",")[0].split(":")[0]
        root = RESULTS.parents[1]
        assert (RESULTS / name).exists() or (root / name).exists()
