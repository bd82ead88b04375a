"""Every rule on a data root in which it holds, and on one in which it does not."""

import copy
import json
import re
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from quality_inputs import LENIENT, PART, SHARDS, VECTORS, copy_root, jpeg, shared_root
from tensorflow_datasets.proto import tf_example_pb2
from tfds_inputs import payloads_of

from laion_assets.formats import parquet, tfrecord
from laion_assets.formats.digest_index import open_index, write_index
from laion_assets.formats.publish import Recipe, Tally, publish, read_manifest
from laion_assets.formats.webdataset import open_tar
from laion_assets.layout import EmbeddingShardId, Layout, ShardId
from laion_assets.pipeline import STAGE_BY_NAME, STAGES
from laion_assets.published import STAGE_NAMES, output_of, partitions_of
from laion_assets.quality.checks import evaluate, rules_of
from laion_assets.quality.rules import RULES, Query
from laion_assets.schema import RAW
from laion_assets.stages.laion400m import publish_dataset
from laion_assets.vector_places import VECTOR_PLACE

SHARD = SHARDS[0]
BAD = {}


def bad(stage, name):
    """Register what breaks a rule; it returns the partition to look at, by default shard 00000."""

    def register(spoil):
        BAD[stage, name] = spoil
        return spoil

    return register


def set_rows(rows, column, value, *, count):
    for row in rows[:count]:
        row[column] = value


def spoil_raw(root, column, value, count=10):
    output = root.layout.raw_metadata(PART)
    root.rewrite_table(output, f"{PART}.parquet", lambda rows: set_rows(rows, column, value, count=count))
    return PART


def spoil_table(root, output, column, value, count=1):
    root.rewrite_table(output, output.names[0], lambda rows: set_rows(rows, column, value, count=count))


def spoil_plan(root, change):
    root.rewrite_json(root.layout.shard_plan(), "shard_plan.json", change)
    return "shard_plan"


def spoil_images(root, change):
    root.rewrite_table(root.layout.images(SHARD), f"{SHARD}.parquet", change)


def set_field(records, name, value):
    records[name][:1] = value


def rewrite_index(root, change):
    """Change the records of the index in place, or return others."""

    def changed(path):
        with open_index(path, VECTOR_PLACE) as index:
            records, number = np.concatenate([*index.everything()]), index.number
        other = change(records)
        write_index(path, records if other is None else other, number=number)

    root.rewrite(root.layout.embedding_index(VECTORS), f"{VECTORS}.index", changed)


@bad("raw_metadata", "columns_are_canonical")
def _(root):
    def widen(path):
        table = pq.read_table(path)
        index = table.schema.get_field_index("HEIGHT")
        pq.write_table(table.set_column(index, "HEIGHT", table["HEIGHT"].cast(pa.int64())), path)

    root.rewrite(root.layout.raw_metadata(PART), f"{PART}.parquet", widen)
    return PART


@bad("raw_metadata", "url_is_known")
def _(root):
    return spoil_raw(root, "URL", None)


@bad("raw_metadata", "text_is_known")
def _(root):
    return spoil_raw(root, "TEXT", None)


@bad("raw_metadata", "url_and_text_are_unique")
def _(root):
    spoil_raw(root, "URL", "http://example.org/same")
    return spoil_raw(root, "TEXT", "same")


@bad("raw_metadata", "similarity_is_in_range")
def _(root):
    return spoil_raw(root, "similarity", 0.29)


@bad("raw_metadata", "similarity_is_known")
def _(root):
    return spoil_raw(root, "similarity", float("nan"))


@bad("raw_metadata", "similarity_is_possible")
def _(root):
    return spoil_raw(root, "similarity", -0.5)


@bad("shard_plan", "rows_are_covered_once")
def _(root):
    return spoil_plan(root, lambda plan: plan["entries"][0].update(shards=2))


@bad("shard_plan", "shard_numbers_are_unique")
def _(root):
    return spoil_plan(root, lambda plan: plan.update(placed=[1]))


@bad("shard_plan", "parts_are_unchanged")
def _(root):
    return spoil_plan(root, lambda plan: plan["entries"][0].update(sha256="0" * 64))


@bad("shard_plan", "sources_are_there")
def _(root):
    def another_size(source):
        source["size_bytes"] += 1

    root.rewrite_json(root.layout.raw_metadata(PART), f"{PART}.source.json", another_size)
    return "shard_plan"


def spoil_duplicates(root, change):
    root.rewrite_table(root.layout.duplicates(), "duplicates.parquet", change)
    return "duplicates"


@bad("duplicates", "counts_add_up")
def _(root):
    return spoil_duplicates(root, lambda rows: rows[-1].update(url_null=rows[0]["url_null"] + 1))


@bad("duplicates", "parts_are_current")
def _(root):
    spoil_raw(root, "URL", None)
    return "duplicates"


@bad("duplicates", "few_pairs_are_repeated")
def _(root):
    def repeat(rows):
        rows[-1].update(url_repeated=9, pair_repeated=9)

    return spoil_duplicates(root, repeat)


@bad("samples", "keys_are_the_shards")
def _(root):
    output = root.layout.samples(SHARD)
    root.rewrite_table(output, output.only.name, lambda rows: rows[::-1])


@bad("samples", "rows_are_the_plans")
def _(root):
    output = root.layout.samples(SHARD)
    root.rewrite_table(output, output.only.name, lambda rows: rows[:-1], rows=19)


@bad("samples", "unacceptable_rows_are_set_aside")
def _(root):
    spoil_table(root, root.layout.samples(SHARD), "similarity", 1.5)


@bad("samples", "few_rows_are_set_aside")
def _(root):
    spoil_table(root, root.layout.samples(SHARD), "set_aside", "missing_url", count=5)


@bad("images", "rows_are_accounted_for")
def _(root):
    spoil_images(root, lambda rows: rows[1:])


@bad("images", "keys_are_unique")
def _(root):
    spoil_images(root, lambda rows: [*rows, rows[0]])


@bad("images", "outcomes_are_known")
def _(root):
    spoil_images(root, lambda rows: set_rows(rows, "outcome", "tls", count=1))


@bad("images", "tar_holds_the_successes")
def _(root):
    def lose_pictures(path):
        with open_tar(path) as tar:
            tar.add("0000000.jpg", jpeg(0))
            tar.add("0000001.txt", b"a caption without its picture")

    root.rewrite(root.layout.images(SHARD), f"{SHARD}.tar", lose_pictures)


@bad("images", "success_share_is_usual")
def _(root):
    def fail(rows):
        set_rows(rows, "status", "failed_to_download", count=20)
        set_rows(rows, "outcome", "dns", count=18)

    spoil_images(root, fail)


@bad("images", "success_share_is_as_elsewhere")
def _(root):
    spoil_images(root, lambda rows: set_rows(rows, "outcome", "dns", count=20))


@bad("images", "stats_agree")
def _(root):
    output = root.layout.images(SHARD)
    root.rewrite_json(output, f"{SHARD}_stats.json", lambda stats: stats.update(successes=0))


@bad("normalized_images", "nsfw_is_one_of_four_tags")
def _(root):
    spoil_table(root, root.layout.normalized_images(SHARD), "nsfw", "unlikely")


@bad("normalized_images", "similarity_is_a_cosine_or_missing")
def _(root):
    spoil_table(root, root.layout.normalized_images(SHARD), "similarity", float("nan"))


@bad("normalized_images", "url_is_there")
def _(root):
    spoil_table(root, root.layout.normalized_images(SHARD), "url", " ")


@bad("normalized_images", "sizes_are_positive")
def _(root):
    spoil_table(root, root.layout.normalized_images(SHARD), "original_width", 0)


@bad("normalized_images", "tags_are_as_elsewhere")
def _(root):
    spoil_table(root, root.layout.normalized_images(SHARD), "nsfw", "NSFW", count=20)


@bad("normalized_images", "similarities_are_as_elsewhere")
def _(root):
    spoil_table(root, root.layout.normalized_images(SHARD), "similarity", 0.99, count=20)


@bad("normalized_images", "successes_are_accounted_for")
def _(root):
    output = root.layout.normalized_images(SHARD)
    root.rewrite_table(output, output.names[0], lambda rows: rows[1:])


@bad("normalized_images", "sampled_pictures_are_as_described")
def _(root):
    spoil_table(root, root.layout.normalized_images(SHARD), "height", 25)


@bad("tfds_images", "records_are_the_rows")
def _(root):
    def swap(path):
        payloads = list(tfrecord.read_records(path))
        tfrecord.write_records(path, [payloads_of([payloads[1], payloads[0], *payloads[2:]])])

    root.rewrite(root.layout.tfds_images(SHARD), f"{SHARD}.tfrecord", swap)


@bad("tfds_embeddings", "records_are_the_rows")
def _(root):
    def change_vector(path):
        payloads = list(tfrecord.read_records(path))
        # The last feature but one is text_embedding; some byte of it.
        at = payloads[0].index(b"text_embedding") + 40
        payloads[0] = payloads[0][:at] + bytes([payloads[0][at] ^ 1]) + payloads[0][at + 1 :]
        tfrecord.write_records(path, [payloads_of(payloads)])

    root.rewrite(root.layout.tfds_embeddings(VECTORS), f"{VECTORS}.tfrecord", change_vector)


def spoil_records(root, change):
    """Change the payloads of the pictures with vectors, in place."""

    def changed(path):
        payloads = list(tfrecord.read_records(path))
        change(payloads)
        tfrecord.write_records(path, [payloads_of(payloads)])

    root.rewrite(root.layout.tfds_image_embeddings(SHARD), f"{SHARD}.tfrecord", changed)


def spoil_examples(root, change):
    """As above, of the examples parsed."""

    def change_payloads(payloads):
        examples = [tf_example_pb2.Example.FromString(payload) for payload in payloads]
        change([example.features.feature for example in examples])
        payloads[:] = [example.SerializeToString(deterministic=True) for example in examples]

    spoil_records(root, change_payloads)


def move_on(features, *names):
    """Give each example what the next one has under these names."""
    for name in names:
        values = [copy.deepcopy(feature[name]) for feature in features]
        for feature, value in zip(features, [*values[1:], values[0]], strict=True):
            feature[name].CopyFrom(value)


@bad("tfds_image_embeddings", "rows_are_accounted_for")
def _(root):
    output = root.layout.tfds_image_embeddings(SHARD)
    root.rewrite(output, output.only.name, lambda path: None, without_vectors=1)


@bad("tfds_image_embeddings", "records_are_the_rows")
def _(root):
    # Both vectors, so that the cosine is still that of a pair.
    spoil_examples(root, lambda features: move_on(features, "image_embedding", "text_embedding"))


@bad("tfds_image_embeddings", "sampled_examples_decode")
def _(root):
    def cut(features):
        for feature in features:
            picture = feature["image"].bytes_list.value
            picture[0] = picture[0][: len(picture[0]) // 2]

    spoil_examples(root, cut)


@bad("tfds_image_embeddings", "cosines_match_similarities")
def _(root):
    spoil_examples(root, lambda features: move_on(features, "text_embedding"))


def spoil_info(root, config, **changes):
    path = root.layout.tfds_version(config) / "dataset_info.json"
    info = json.loads(path.read_text())
    info["splits"][0].update(changes)
    path.unlink()
    path.write_text(json.dumps(info))
    return f"laion400m_{config}"


@bad("laion400m_images", "shards_are_those_published")
def _(root):
    return spoil_info(root, "images", shardLengths=["16", "17", "3"])


@bad("laion400m_embeddings", "shards_are_those_published")
def _(root):
    return spoil_info(root, "embeddings", numBytes="1")


@bad("laion400m_image_embeddings", "shards_are_those_published")
def _(root):
    return spoil_info(root, "image_embeddings", shardLengths=["16", "17"])


def cut_record(root, config):
    (file,) = list(root.layout.tfds_version(config).glob("*tfrecord-00000-of-*"))
    payloads = list(tfrecord.read_records(file))
    file.unlink()
    tfrecord.write_records(file, [payloads_of(payloads[:-1])])
    return f"laion400m_{config}"


@bad("laion400m_images", "records_are_as_many")
def _(root):
    return cut_record(root, "images")


@bad("laion400m_embeddings", "records_are_as_many")
def _(root):
    return cut_record(root, "embeddings")


@bad("laion400m_image_embeddings", "records_are_as_many")
def _(root):
    return cut_record(root, "image_embeddings")


@bad("laion400m_images", "shards_are_current")
def _(root):
    output = root.layout.tfds_images(ShardId(2))
    publish(output, Recipe(code_version="1"), lambda draft: (draft.only.write_bytes(b""), Tally(rows=0))[1])
    return "laion400m_images"


@bad("laion400m_embeddings", "shards_are_current")
def _(root):
    root.layout.tfds_embeddings(VECTORS).manifest.unlink()
    return "laion400m_embeddings"


@bad("laion400m_image_embeddings", "shards_are_current")
def _(root):
    root.layout.tfds_image_embeddings(SHARD).manifest.unlink()
    return "laion400m_image_embeddings"


@bad("embeddings", "files_are_those_checked")
def _(root):
    root.rewrite_json(
        root.layout.embeddings(VECTORS),
        f"{VECTORS}.json",
        lambda source: source["text_vectors"].update(size_bytes=1),
    )


@bad("embeddings", "vectors_are_of_length_one")
def _(root):
    root.rewrite_json(
        root.layout.embeddings(VECTORS),
        f"{VECTORS}.json",
        lambda source: source["text_vectors"].update(path="/nowhere/text_emb_0.npy"),
    )


@bad("embedding_join", "rows_are_the_sources")
def _(root):
    output = root.layout.embedding_join(VECTORS)
    root.rewrite_table(output, output.only.name, lambda rows: rows[1:])


@bad("embedding_join", "cosines_match_similarities")
def _(root):
    def shift(rows):
        similarities = [row["similarity"] for row in rows]
        for row, similarity in zip(rows, [*similarities[1:], similarities[0]], strict=True):
            row["similarity"] = similarity

    output = root.layout.embedding_join(VECTORS)
    root.rewrite_table(output, output.only.name, shift)


@bad("embedding_index", "rows_are_found")
def _(root):
    rewrite_index(root, lambda records: set_field(records, "image_at", 1))


@bad("normalized_embeddings", "nsfw_is_one_of_four_tags")
def _(root):
    spoil_table(root, root.layout.normalized_embeddings(VECTORS), "nsfw", "")


@bad("normalized_embeddings", "similarity_is_a_cosine_or_missing")
def _(root):
    spoil_table(root, root.layout.normalized_embeddings(VECTORS), "similarity", 1.5)


@bad("normalized_embeddings", "url_is_there")
def _(root):
    spoil_table(root, root.layout.normalized_embeddings(VECTORS), "url", "")


def spoil_beside_another(root, column, value):
    """Spoil the one shard of vectors that there is, once it has another to be compared with."""
    output = root.layout.normalized_embeddings(VECTORS)
    counts = read_manifest(output).counts
    other = root.layout.normalized_embeddings(EmbeddingShardId(VECTORS.number + 1))

    def write(draft):
        for name in other.names:
            draft.path(name).write_bytes(b"")
        return Tally(rows=0, counts=counts)

    publish(other, Recipe(code_version="1"), write)
    spoil_table(root, output, column, value, count=30)


@bad("normalized_embeddings", "tags_are_as_elsewhere")
def _(root):
    spoil_beside_another(root, "nsfw", "NSFW")


@bad("normalized_embeddings", "similarities_are_as_elsewhere")
def _(root):
    spoil_beside_another(root, "similarity", 0.99)


@bad("normalized_embeddings", "rows_are_accounted_for")
def _(root):
    spoil_table(root, root.layout.normalized_embeddings(VECTORS), "key", "another")


@bad("image_embeddings", "keys_are_of_the_shard")
def _(root):
    spoil_table(root, root.layout.image_embeddings(SHARD), "key", "0000019")


@bad("image_embeddings", "vectors_are_of_length_one")
def _(root):
    spoil_table(
        root, root.layout.image_embeddings(SHARD), "image_embedding", struct.pack("<16e", *[2] * 16), 3
    )


@bad("catalog", "views_hold_the_rows")
def _(root):
    # A stage that has published nothing when the catalog is written gets an empty view.
    from laion_assets.stages.catalog import write_catalog

    for shard in SHARDS:
        root.layout.image_embeddings(shard).manifest.rename(root.layout.root / f"{shard}.put-by")
    write_catalog(root.layout)
    for shard in SHARDS:
        (root.layout.root / f"{shard}.put-by").rename(root.layout.image_embeddings(shard).manifest)
    return "catalog"


@bad("dataset_report", "page_is_inert")
def _(root):
    def add(path):
        path.write_text(path.read_text().replace("<h1>", '<img src=x onerror="alert(1)"><h1>'))

    root.rewrite(root.layout.dataset_report(), "report.html", add)
    return "dataset_report"


@bad("dataset_report", "report_is_current")
def _(root):
    root.layout.image_embeddings(SHARD).manifest.unlink()
    return "dataset_report"


# -- the tests ------------------------------------------------------------------------------------


def named(rule):
    return f"{rule.stage}-{rule.name}"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return shared_root(tmp_path_factory)


@pytest.fixture
def root(pristine, tmp_path):
    return copy_root(pristine, tmp_path)


@pytest.mark.parametrize("rule", RULES, ids=named)
def test_a_rule_passes_what_the_stages_make(rule, pristine):
    partitions = partitions_of(pristine, rule.stage)
    assert partitions
    for partition in partitions:
        verdict = evaluate(rule, pristine, LENIENT, partition)
        assert verdict.passed, verdict
        assert verdict.rows > 0


@pytest.mark.parametrize("rule", rules_of("laion400m_images"), ids=named)
def test_a_rule_passes_a_dense_data_set_and_sees_what_breaks_it(rule, root):
    dense = Layout(root.layout.root, dense=True)
    # Without the first shard, the second has the first number.
    dense.tfds_images(SHARD).manifest.unlink()
    publish_dataset("images", dense, shard_count=3)
    verdict = evaluate(rule, dense, LENIENT, rule.stage)
    assert verdict.passed, verdict
    (file,) = dense.tfds_version("images").glob("*tfrecord*")
    assert file.name == "laion400m-train.tfrecord-00000-of-00001"
    file.unlink()
    dense.tfds_images(SHARDS[1]).manifest.unlink()
    assert not evaluate(rule, dense, LENIENT, rule.stage).passed


@pytest.mark.parametrize("rule", RULES, ids=named)
def test_a_rule_fails_what_breaks_it(rule, root):
    spoil = BAD[rule.stage, rule.name]
    partition = spoil(root) or str(SHARD)
    verdict = evaluate(rule, root.layout, LENIENT, partition)
    assert not verdict.passed
    assert verdict.offending > 0
    assert 1 <= len(verdict.examples) <= 5
    # It is this rule that found it, and not the file that could not be read.
    assert verdict.rows > 0, verdict
    assert json.loads(json.dumps(dict(verdict.figures))) == dict(verdict.figures)


def test_no_bad_table_is_left_without_its_rule():
    assert set(BAD) == {(rule.stage, rule.name) for rule in RULES}


@pytest.mark.parametrize("stage", [stage.name for stage in STAGES])
def test_every_stage_has_rules(stage):
    rules = rules_of(stage)
    assert rules
    assert len({rule.name for rule in rules}) == len(rules)
    for rule in rules:
        assert re.fullmatch(r"[A-Za-z0-9_]+", rule.name)  # what Dagster allows
        assert rule.description.endswith(".")
        assert "\n" not in rule.description


def test_every_stage_has_its_files_and_they_are_where_the_stages_put_them(pristine):
    assert tuple(sorted(STAGE_NAMES, key=[stage.name for stage in STAGES].index)) == STAGE_NAMES
    assert set(STAGE_NAMES) == set(STAGE_BY_NAME)
    for stage in STAGES:
        found = partitions_of(pristine, stage.name)
        assert found, stage.name
        for partition in found:
            assert output_of(pristine, stage.name, partition).stage == stage.name


def test_some_rules_are_sql_and_name_their_thresholds():
    queries = [rule.check for rule in RULES if isinstance(rule.check, Query)]
    assert len(queries) > 10
    for query in queries:
        assert query.allowed_share is None or hasattr(LENIENT, query.allowed_share)


# -- values at the edge ---------------------------------------------------------------------------


def verdict_on_raw(layout, name, rows):
    def write(draft):
        table = pa.Table.from_pylist(rows, schema=RAW)
        parquet.write_table(draft.path(f"{PART}.parquet"), table, RAW)
        draft.path(f"{PART}.source.json").write_text("{}")
        return Tally(rows=len(rows))

    publish(layout.raw_metadata(PART), Recipe(code_version=str(rows)), write)
    (rule,) = [rule for rule in rules_of("raw_metadata") if rule.name == name]
    return evaluate(rule, layout, LENIENT, PART)


def similarities(*values):
    return [{"similarity": value} for value in values]


@pytest.mark.parametrize(
    ("name", "offending"),
    [
        # -1.0 is how a missing one is written, 1.0005 is rounding, and NaN compares with nothing.
        ("similarity_is_possible", 3),
        ("similarity_is_known", 3),
        ("similarity_is_in_range", 4),
    ],
)
def test_similarities_at_the_edge(root, name, offending):
    rows = similarities(None, float("nan"), -1.0, 0.0, 0.3, 1.0, 1.0005, 1.01, 6016.0, -1e-9)
    assert verdict_on_raw(root.layout, name, rows).offending == offending


def test_only_repeats_of_a_pair_offend(root):
    rows = [{"URL": url, "TEXT": text} for url, text in ["ab", "ac", "ab", "ab", (None, "b"), (None, "b")]]
    rows += [{"URL": "a", "TEXT": None}, {"URL": "a", "TEXT": None}]
    verdict = verdict_on_raw(root.layout, "url_and_text_are_unique", rows)
    assert (verdict.offending, verdict.rows) == (3, 8)
    assert verdict.examples == ("2: a", "3: a", "7: a")


def test_a_part_without_rows_passes(root):
    for rule in rules_of("raw_metadata"):
        verdict = verdict_on_raw(root.layout, rule.name, [])
        assert verdict.passed, (rule.name, verdict)


def test_examples_are_few_short_and_harmless(root):
    hostile = "http://x/\u202e\x1b[31m\x00" + "y" * 60_000
    verdict = verdict_on_raw(root.layout, "url_and_text_are_unique", [{"URL": hostile, "TEXT": "t"}] * 9)
    assert (verdict.offending, len(verdict.examples)) == (8, 5)
    for example in verdict.examples:
        assert example.isprintable()
        assert len(example) <= 300


def test_text_that_is_not_utf8_is_looked_at_all_the_same(root):
    bytes_ = pa.array([b"\xff\xfe"] * 3 + [b"ok"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), len(bytes_), bytes_.buffers())
    columns = {field.name: pa.nulls(4, field.type) for field in RAW} | {"URL": text, "TEXT": text}

    def write(draft):
        pq.write_table(pa.table(columns, schema=RAW), draft.path(f"{PART}.parquet"))
        draft.path(f"{PART}.source.json").write_text("{}")
        return Tally(rows=4)

    publish(root.layout.raw_metadata(PART), Recipe(code_version="not utf-8"), write)
    (rule,) = [rule for rule in rules_of("raw_metadata") if rule.name == "url_and_text_are_unique"]
    assert evaluate(rule, root.layout, LENIENT, PART).offending == 2


# -- shards made elsewhere ------------------------------------------------------------------------


def test_a_shard_as_img2dataset_writes_it_passes(root):
    """Its rows are in completion order, and columns of ours are missing."""

    def as_img2dataset(path):
        table = pq.read_table(path).drop_columns(["outcome", "http_status", "exif"])
        pq.write_table(table.take(list(range(len(table)))[::-1]), path)

    root.rewrite(root.layout.images(SHARD), f"{SHARD}.parquet", as_img2dataset)
    for rule in (*rules_of("images"), *rules_of("normalized_images")):
        verdict = evaluate(rule, root.layout, LENIENT, str(SHARD))
        assert verdict.passed, (rule.name, verdict)


def test_keys_of_another_shard_are_misaligned(root):
    output = root.layout.images(SHARD)
    root.rewrite_table(output, f"{SHARD}.parquet", lambda rows: rows[0].update(key="0000100"))
    (rule,) = [rule for rule in rules_of("images") if rule.name == "rows_are_accounted_for"]
    verdict = evaluate(rule, root.layout, LENIENT, str(SHARD))
    assert not verdict.passed
    assert "keys of shard 00000" in verdict.examples[0]


@pytest.mark.parametrize(("total", "most"), [(0, 5), (1, 5), (5, 5), (6, 5), (10_000, 64), (7, 1), (3, 2)])
def test_a_sample_is_spread_from_the_first_to_the_last(total, most):
    from laion_assets.quality.rules.rule import spread

    chosen = spread(total, most)
    assert len(chosen) == len(set(chosen)) == min(total, most)
    assert chosen == sorted(chosen)
    assert all(0 <= index < total for index in chosen)
    if most > 1 and total:
        assert (chosen[0], chosen[-1]) == (0, total - 1)


def test_pictures_that_do_not_decode_are_found_by_the_sample(root):
    """A JPEG whose header is whole passes normalization, which reads no further."""

    tar = root.layout.images_tar(SHARD).read_bytes()
    output = root.layout.normalized_images(SHARD)

    def change(rows):
        offset, size = rows[0]["tar_offset"], rows[0]["tar_bytes"] * 3 // 4
        rows[0].update(tar_bytes=size, image_xxh3=xxhash.xxh3_128_hexdigest(tar[offset : offset + size]))

    root.rewrite_table(output, output.names[0], change)
    (rule,) = [rule for rule in RULES if rule.name == "sampled_pictures_are_as_described"]
    verdict = evaluate(rule, root.layout, LENIENT, str(SHARD))
    assert (verdict.passed, verdict.offending, verdict.rows) == (False, 1, 5)
    assert "cannot be decoded" in verdict.examples[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda records: records[1:], "has no record"),
        (
            lambda records: np.concatenate([records, records[:1]]),
            "records of no row, or of one that has another",
        ),
        (lambda records: set_field(records, "row", 999), "records of no row, or of one that has another"),
        (lambda records: set_field(records, "digest", b"x" * 16), "is found by something else"),
        (lambda records: set_field(records, "caption", b"x" * 16), "is found by something else"),
        (lambda records: set_field(records, "number", 7_777), "is found by something else"),
        (lambda records: set_field(records, "text_at", 0), "are not where its record says"),
        (lambda records: set_field(records, "checksum", 0), "are not where its record says"),
    ],
)
def test_what_is_wrong_with_an_index_is_told(root, change, said):
    rewrite_index(root, change)
    (rule,) = rules_of("embedding_index")
    verdict = evaluate(rule, root.layout, LENIENT, str(VECTORS))
    assert not verdict.passed
    assert any(said in example for example in verdict.examples), verdict.examples
