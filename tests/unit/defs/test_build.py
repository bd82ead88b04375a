"""What a build says of what did not go well."""

from laion_assets.defs.build import Build
from laion_assets.errors import MissingInput
from laion_assets.pipeline import STAGE_BY_NAME
from laion_assets.quality.checks import Verdict, rules_of

FAILED = Verdict(passed=False, rows=2, offending=1, examples=("one",), figures={})


def test_each_complaint_names_its_partition_once():
    done = Build(name="build")
    for stage, key in (("samples", "00001"), ("laion400m_images", "laion400m_images")):
        done.partition_ended(STAGE_BY_NAME[stage], key, MissingInput("no plan"))
        for rule in rules_of(stage):
            if rule.blocking:
                done.check_ended(rule, key, FAILED)
                break
    done.partition_ended(STAGE_BY_NAME["images"], "00001", MissingInput("images 00001: no samples"))
    done.crashes.append("samples: KeyError (run 1)")
    assert not done.went_well
    assert done.complaints == [
        "images 00001: no samples",
        "laion400m_images: no plan",
        "samples 00001: no plan",
        "laion400m_images: check shards_are_those_published failed and blocks what follows",
        "samples 00001: check keys_are_the_shards failed and blocks what follows",
        "crash in samples: KeyError (run 1); the run's log in the UI has the traceback",
    ]
