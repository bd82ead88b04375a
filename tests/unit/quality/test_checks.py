import pytest
from quality_inputs import LENIENT, PART, SHARDS, VECTORS, copy_root, shared_root

from laion_assets.errors import MissingInput
from laion_assets.quality.checks import Rule, Verdict, evaluate, rules_of
from laion_assets.quality.rules import RULES
from laion_assets.text import ForeignError

SHARD = SHARDS[0]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return shared_root(tmp_path_factory)


@pytest.fixture
def layout(pristine, tmp_path):
    return copy_root(pristine, tmp_path).layout


def rule_named(stage, name):
    (rule,) = [rule for rule in rules_of(stage) if rule.name == name]
    return rule


def flip_bytes(path):
    """Damage a file so that neither its size nor its ends tell."""
    body = bytearray(path.read_bytes())
    for at in range(8, len(body) - 8, 97):
        body[at] ^= 0xFF
    path.write_bytes(body)


@pytest.mark.parametrize(
    ("stage", "partition", "path"),
    [
        ("raw_metadata", PART, lambda layout: layout.raw_table(PART)),
        ("samples", str(SHARD), lambda layout: layout.samples(SHARD).only),
        ("images", str(SHARD), lambda layout: layout.images_table(SHARD)),
        ("normalized_images", str(SHARD), lambda layout: layout.normalized_table(SHARD)),
        ("tfds_images", str(SHARD), lambda layout: layout.tfds_images(SHARD).only),
        ("embedding_join", str(VECTORS), lambda layout: layout.embedding_join(VECTORS).only),
        ("tfds_embeddings", str(VECTORS), lambda layout: layout.tfds_embeddings(VECTORS).only),
        ("tfds_image_embeddings", str(SHARD), lambda layout: layout.tfds_image_embeddings(SHARD).only),
        ("shard_plan", "shard_plan", lambda layout: layout.shard_plan().only),
        ("embeddings", str(VECTORS), lambda layout: layout.embeddings(VECTORS).only),
    ],
)
def test_a_damaged_file_fails_the_blocking_rules_that_read_it(layout, stage, partition, path):
    flip_bytes(path(layout))
    failed = [
        verdict
        for rule in rules_of(stage)
        if rule.blocking and not (verdict := evaluate(rule, layout, LENIENT, partition)).passed
    ]
    assert failed
    for verdict in failed:
        assert verdict.offending == 1
        (example,) = verdict.examples
        assert "expected" in example
        assert len(example) <= 300


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.stage}-{rule.name}")
def test_a_file_cut_short_fails_every_rule_of_its_stage(layout, rule):
    from laion_assets.published import output_of, partitions_of

    partition = partitions_of(layout, rule.stage)[0]
    output = output_of(layout, rule.stage, partition)
    for name in output.names:
        output.path(name).write_bytes(output.path(name).read_bytes()[:-1])
    verdict = evaluate(rule, layout, LENIENT, partition)
    assert not verdict.passed
    assert "bytes" in verdict.examples[0]


def test_a_corrupt_tar_says_so(layout):
    flip_bytes(layout.images_tar(SHARD))
    verdict = evaluate(rule_named("images", "tar_holds_the_successes"), layout, LENIENT, str(SHARD))
    assert not verdict.passed
    assert "00000.tar" in verdict.examples[0]


def test_what_is_not_published_is_no_verdict(layout):
    with pytest.raises(MissingInput, match="samples 00007"):
        evaluate(rules_of("samples")[0], layout, LENIENT, "00007")
    layout.samples(SHARD).manifest.unlink()
    with pytest.raises(MissingInput, match="samples 00000"):
        evaluate(rule_named("images", "rows_are_accounted_for"), layout, LENIENT, str(SHARD))


def test_a_crash_is_a_crash(layout):
    def crash(subject):
        raise ZeroDivisionError

    rule = Rule(name="crashes", stage="samples", blocking=True, description="Crashes.", check=crash)
    with pytest.raises(ZeroDivisionError):
        evaluate(rule, layout, LENIENT, str(SHARD))


def test_an_error_in_sql_is_a_crash(layout):
    import dataclasses

    rule = rule_named("samples", "few_rows_are_set_aside")
    wrong = dataclasses.replace(rule, check=dataclasses.replace(rule.check, sql="SELECT nothing FROM rows"))
    with pytest.raises(ForeignError, match=r"BinderException: .*nothing"):
        evaluate(wrong, layout, LENIENT, str(SHARD))


def test_a_verdict_on_a_huge_message_is_short():
    from laion_assets.errors import CorruptInput

    error = CorruptInput("file\x00", expected="e" * 1000, found="\u202e", remedy="r")
    (example,) = Verdict.of_corrupt_file(error).examples
    assert len(example) == 300
    assert example.isprintable()


def test_rules_of_an_unknown_stage_are_none():
    assert rules_of("nothing") == ()
