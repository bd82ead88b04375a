"""What Dagster would make by itself of changed inputs, by its own evaluation, and when a data set is old."""

from datetime import timedelta

import dagster as dg
import pytest

from laion_assets.defs.assembly import build_definitions
from laion_assets.defs.checks import evaluation_of, latest_materializations
from laion_assets.formats.durable import write_durably
from laion_assets.pipeline import IMAGES, PUBLICATION, STAGE_BY_NAME, STAGES
from laion_assets.plan import ShardPlan
from laion_assets.quality.checks import Verdict, rules_of
from laion_assets.settings import Settings


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as found:
        yield found


class Evaluated:
    """Definitions over a plan of so many shards, all of them materialized, evaluated tick by tick."""

    def __init__(self, folder, instance, shards=3):
        self.settings = Settings(data_root=folder / "data", rows_per_shard=10)
        self.instance = instance
        self.cursor = None
        self.plan(shards)
        for stage in ("raw_metadata", *IMAGES):
            self.update(stage, *([None] if stage == "raw_metadata" else self.shards))
        self.update("shard_plan", None)
        assert self.tick() == {}

    def plan(self, shards):
        self.shards = [f"{number:05d}" for number in range(shards)]
        path = self.settings.layout.shard_plan().only
        path.parent.mkdir(parents=True, exist_ok=True)
        plan = ShardPlan(rows_per_shard=10).with_part("part-0", sha256="0" * 64, rows=10 * shards)
        write_durably(path, plan.to_json())
        self.definitions = build_definitions(self.settings)

    def update(self, stage, *partitions):
        for partition in partitions:
            event = dg.AssetMaterialization(stage, partition=partition)
            self.instance.report_runless_asset_event(event)

    def tick(self):
        """Stage -> partitions asked for now."""
        result = dg.evaluate_automation_conditions(
            defs=self.definitions,
            instance=self.instance,
            asset_selection=dg.AssetSelection.all(),
            cursor=self.cursor,
        )
        self.cursor = result.cursor
        return {
            stage.name: asked
            for stage in STAGES
            if (asked := result.get_requested_partitions(dg.AssetKey(stage.name)))
        }


@pytest.fixture
def evaluated(tmp_path, instance):
    return Evaluated(tmp_path, instance)


def test_it_is_off_unless_a_setting_turns_it_on(tmp_path):
    for keep_current, status in (
        (False, dg.DefaultSensorStatus.STOPPED),
        (True, dg.DefaultSensorStatus.RUNNING),
    ):
        settings = Settings(data_root=tmp_path, automation={"keep_current": keep_current})
        sensors = {sensor.name: sensor for sensor in build_definitions(settings).sensors}
        assert sensors["keep_current"].default_status is status


def test_only_what_follows_from_an_update_is_asked_for_once(evaluated):
    evaluated.update("images", "00001")
    assert evaluated.tick() == {"normalized_images": {"00001"}, "tfds_images": {"00001"}}
    assert evaluated.tick() == {}
    evaluated.update("normalized_images", "00001")
    evaluated.update("tfds_images", "00001")
    asked = evaluated.tick()
    assert asked == {"laion400m_images": {None}, "catalog": {None}, "dataset_report": {None}}
    assert evaluated.tick() == {}


def test_the_plan_touches_no_shard(evaluated):
    evaluated.update("shard_plan", None)
    assert not set(evaluated.tick()) & set(IMAGES)


def test_that_files_were_seen_to_be_gone_makes_nothing(evaluated):
    observation = dg.AssetObservation("images", partition="00001", metadata={"files": "gone or changed"})
    evaluated.instance.report_runless_asset_event(observation)
    assert evaluated.tick() == {}


def test_what_lacks_an_input_waits_for_it(evaluated):
    evaluated.plan(4)
    evaluated.update("images", "00003")
    assert evaluated.tick() == {"normalized_images": {"00003"}, "tfds_images": {"00003"}}
    evaluated.plan(5)
    evaluated.update("normalized_images", "00004")
    assert evaluated.tick() == {}
    evaluated.update("images", "00004")
    assert evaluated.tick()["tfds_images"] == {"00004"}


def test_a_failing_check_that_blocks_holds_back_what_follows_and_no_other_shard(evaluated):
    evaluated.update("images", "00000", "00001")
    (rule,) = (rule for rule in rules_of("images") if rule.name == "tar_holds_the_successes")
    targets = latest_materializations(evaluated.instance, "images", ["00001"])
    verdict = Verdict(passed=False, offending=1, rows=1)
    evaluated.instance.report_runless_asset_event(evaluation_of(rule, "00001", verdict, targets["00001"]))
    assert evaluated.tick() == {"normalized_images": {"00000"}, "tfds_images": {"00000"}}
    # Made anew, it has no verdict that fails.
    evaluated.update("images", "00001")
    assert evaluated.tick() == {"normalized_images": {"00001"}, "tfds_images": {"00001"}}


def test_a_plan_that_grows_forgets_no_update(evaluated):
    evaluated.update("images", "00001")
    evaluated.plan(4)
    assert evaluated.tick() == {"normalized_images": {"00001"}, "tfds_images": {"00001"}}


def test_without_vectors_pictures_are_not_joined(evaluated, tmp_path):
    graph = evaluated.definitions.resolve_asset_graph()
    (tmp_path / "embeddings").mkdir()
    sources = {"embeddings": {"source": str(tmp_path / "embeddings")}}
    with_vectors = build_definitions(Settings(data_root=tmp_path, **sources)).resolve_asset_graph()
    key = dg.AssetKey("image_embeddings")
    assert graph.get(key).automation_condition is None
    assert with_vectors.get(key).automation_condition is not None
    assert with_vectors.get(dg.AssetKey("tfds_image_embeddings")).automation_condition is None


@pytest.mark.parametrize("days", [7, 3_650, 0])
def test_data_sets_are_called_old_after_some_days_or_never(tmp_path, days):
    graph = build_definitions(
        Settings(data_root=tmp_path, automation={"warn_after_days": days})
    ).resolve_asset_graph()
    for stage in STAGE_BY_NAME:
        policy = graph.get(dg.AssetKey(stage)).freshness_policy
        if stage in PUBLICATION and days:
            assert policy.warn_window.to_timedelta() == timedelta(days=days)
            # Beyond, GraphQL answers the UI with an error, and for all assets at once.
            assert policy.fail_window.to_timedelta().total_seconds() < 2**31
        else:
            assert policy is None
