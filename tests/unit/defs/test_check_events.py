import dagster as dg
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionResolvedStatus
from quality_inputs import copy_root, shared_root

from laion_assets.defs.assembly import build_definitions
from laion_assets.defs.partitions import range_tags
from laion_assets.settings import Settings

SHARDS = ["00000", "00001"]
CHECK = dg.AssetCheckKey(dg.AssetKey("samples"), "rows_are_the_plans")


def test_verdicts_of_a_batch_are_about_the_latest_materializations(tmp_path_factory, tmp_path):
    layout = copy_root(shared_root(tmp_path_factory), tmp_path).layout
    definitions = build_definitions(Settings(data_root=layout.root))
    (samples,) = (asset for asset in definitions.assets if asset.key == CHECK.asset_key)

    def passed():
        states = instance.event_log_storage.get_asset_check_state([(CHECK, samples.partitions_def)])
        return set(
            states[CHECK].subsets[AssetCheckExecutionResolvedStatus.SUCCEEDED].value.get_partition_keys()
        )

    with dg.DagsterInstance.ephemeral() as instance:
        for shard in SHARDS:
            instance.report_runless_asset_event(dg.AssetMaterialization("samples", partition=shard))
        result = dg.materialize(
            [*definitions.assets, *definitions.asset_checks],
            selection=dg.AssetSelection.checks_for_assets("samples"),
            tags=range_tags(SHARDS),
            instance=instance,
        )
        assert result.success
        assert passed() == set(SHARDS)
        instance.report_runless_asset_event(dg.AssetMaterialization("samples", partition=SHARDS[0]))
        assert passed() == {SHARDS[1]}
