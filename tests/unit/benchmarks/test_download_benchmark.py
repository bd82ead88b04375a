import io
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from benchmarks.corpus import PHOTOGRAPHS, make_corpus
from benchmarks.measuring import Failed, Sample, busy_shares, measure
from benchmarks.pictures import bare_cpu_s, compare, psnr_db, ssim
from benchmarks.report import headline, medians, tables
from benchmarks.scenarios import DEAD_HOSTS, OURS, THEIRS, slope
from benchmarks.urls import FAILING, HOSTS, TLS_FAILURES, Ports, address, host_numbers, make_urls, share_out

PORTS = Ports(http=1, https=2, untrusted=3, refused=4, silent=5)


def urls(count=2_000, scheme="https", **options):
    names = ["0001.jpg", "0002.png"]
    return make_urls(count, scheme=scheme, corpus="small", names=names, ports=PORTS, seed=1, **options)


# -- corpora --------------------------------------------------------------------------------------


@pytest.fixture(params=["photographs", "generated"])
def photographs(request, tmp_path):
    if request.param == "generated":
        return tmp_path / "none"
    if not PHOTOGRAPHS.exists():
        pytest.skip("the real photographs are not there")
    return PHOTOGRAPHS


def test_small_pictures_have_the_sizes_of_laion_400m_s(tmp_path, photographs):
    made = make_corpus(tmp_path, "small", count=100, seed=1, photographs=photographs)
    assert {side: round(100 * share) for side, share in made.reaching.items()} == {256: 65, 512: 27, 1024: 6}
    assert made.formats["jpg"] >= 75
    assert set(made.formats) == {"jpg", "png", "webp", "gif"}
    sizes = [(made.folder / name).stat().st_size for name in made.names]
    assert made.mean_bytes == np.mean(sizes)
    assert 20_000 < made.mean_bytes < 110_000
    for name in made.names:
        with Image.open(made.folder / name) as picture:
            picture.load()


def test_large_pictures_are_large(tmp_path, photographs):
    made = make_corpus(tmp_path, "large", count=3, seed=1, photographs=photographs)
    assert made.formats == {"jpg": 3}
    for name in made.names:
        with Image.open(made.folder / name) as picture:
            assert 1500 <= max(picture.size) <= 3000


def test_equal_settings_make_equal_pictures_and_they_are_made_once(tmp_path):
    first = make_corpus(tmp_path / "one", "small", count=10, seed=1)
    again = make_corpus(tmp_path / "two", "small", count=10, seed=1)
    assert [(first.folder / name).read_bytes() for name in first.names] == [
        (again.folder / name).read_bytes() for name in again.names
    ]
    before = {name: (first.folder / name).stat().st_mtime_ns for name in first.names}
    assert make_corpus(tmp_path / "one", "small", count=10, seed=1) == first
    assert {name: (first.folder / name).stat().st_mtime_ns for name in first.names} == before


# -- lists of URLs --------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_share_of_failures_is_what_it_is_said_to_be(scheme):
    kinds = Counter(share_out(2_000, scheme))
    assert kinds.total() == 2_000
    assert kinds["success"] == round(2_000 * (1 - FAILING))
    assert kinds["404"] > kinds["403"] > kinds["undecodable"] > kinds["opt_out"] > 0
    assert any(kinds[kind] for kind in TLS_FAILURES) == (scheme == "https")


def test_each_url_is_another_and_leads_to_what_its_kind_says():
    made = urls()
    assert len({entry.url for entry in made.entries}) == 2_000
    for entry in made.entries:
        assert entry.url.startswith("https://")
        assert (entry.name is not None) == (entry.kind in ("success", "opt_out"))
        assert (".invalid:" in entry.url) == (entry.kind == "dns")
        assert (f":{PORTS.untrusted}/" in entry.url) == (entry.kind == "tls_untrusted")
    assert urls().entries == made.entries


def test_hosts_are_loopback_addresses_of_which_few_have_many_urls(tmp_path):
    assert address(0) == "127.1.0.1"
    assert address(HOSTS - 1) == "127.1.2.12"
    assert len({address(host) for host in range(HOSTS)}) == HOSTS
    for options in ({}, {"web_urls": tmp_path / "none"}):
        hosts = Counter(host_numbers(2_000, np.random.default_rng(1), **options))
        assert set(hosts) <= set(range(HOSTS))
        assert len(hosts) > 400
        assert sum(count for _, count in hosts.most_common(10)) > 200


def test_urls_of_dead_hosts_lead_to_the_silent_port_and_the_others_stay():
    well, dead = urls(), urls(dead_hosts=DEAD_HOSTS)
    for before, after in zip(well.entries, dead.entries, strict=True):
        if before.host in DEAD_HOSTS and before.kind != "dns":
            assert after.kind == "silent"
            assert f"{address(before.host)}:{PORTS.silent}/" in after.url
        else:
            assert after == before
    assert 0.1 < dead.kinds["silent"] / 2_000 < 0.3
    assert round(HOSTS / len(DEAD_HOSTS)) == 5


# -- pictures -------------------------------------------------------------------------------------


def noise(seed=0):
    return np.random.default_rng(seed).uniform(0, 255, (40, 60))


def test_equal_pictures_are_alike_and_others_less():
    picture = np.add.outer(np.arange(40.0), np.arange(60.0) * 2)
    assert ssim(picture, picture) == pytest.approx(1)
    assert psnr_db(picture, picture) == float("inf")
    slightly = picture + np.random.default_rng(1).normal(0, 2, picture.shape)
    assert 0.5 < ssim(picture, slightly) < 1
    assert psnr_db(picture, slightly) == pytest.approx(42.1, abs=0.5)
    assert abs(ssim(noise(1), noise(2))) < 0.1
    assert ssim(picture, noise()) < ssim(picture, slightly)


def test_ssim_is_that_of_its_formula_where_it_is_simple():
    # Without variance only the means count: (2ab + C1) / (a² + b² + C1).
    one, other = np.full((20, 20), 100.0), np.full((20, 20), 150.0)
    c1 = (0.01 * 255) ** 2
    assert ssim(one, other) == pytest.approx((2 * 100 * 150 + c1) / (100**2 + 150**2 + c1))


def encoded(size, kind="PNG"):
    stream = io.BytesIO()
    gradient = np.linspace(0, 255, size[0] * size[1] * 3).reshape(size[1], size[0], 3).astype(np.uint8)
    Image.fromarray(gradient).save(stream, kind)
    return stream.getvalue()


def test_a_stored_picture_is_held_against_its_original_at_its_own_size():
    same = compare(encoded((80, 60)), encoded((80, 60)))
    assert same.ssim == pytest.approx(1)
    assert not same.is_reduced
    assert compare(encoded((80, 60)), encoded((160, 120))).is_reduced


def test_the_bare_cost_counts_pictures_of_every_format():
    bodies = [encoded((600, 400), kind) for kind in ("PNG", "JPEG", "WEBP", "GIF")]
    assert bare_cpu_s(bodies, size=256, quality=95) > 0
    assert bare_cpu_s(bodies, size=256, quality=95, threads=2) > 0


# -- measuring and reporting ----------------------------------------------------------------------


def test_what_a_program_s_children_use_is_its_own(tmp_path):
    burn = "import time\nwhile time.process_time() < 0.4: pass"
    child = f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {burn!r}]); time.sleep(0.5)"
    usage = measure([sys.executable, "-c", child], environment={}, log=tmp_path / "log", limit_s=60)
    assert usage.cpu_s > 0.4
    assert usage.wall_s > 0.5
    assert usage.peak_memory_bytes > 1_000_000
    assert [sample.cpu_s for sample in usage.samples] == sorted(sample.cpu_s for sample in usage.samples)
    assert usage.samples[-1].cpu_s > 0.3


def test_a_program_that_fails_or_takes_too_long_is_an_error_that_shows_its_output(tmp_path):
    fails = [sys.executable, "-c", "raise SystemExit('no such thing')"]
    with pytest.raises(Failed, match="no such thing"):
        measure(fails, environment={}, log=tmp_path / "log", limit_s=60)
    sleeps = [sys.executable, "-c", "import time; time.sleep(600)"]
    with pytest.raises(Failed, match="ended with -9"):
        measure(sleeps, environment={}, log=tmp_path / "log", limit_s=0.3)


def test_cores_are_busy_by_what_was_used_between_two_times():
    samples = [
        Sample(time_s=second, cpu_s=second, busy_s=1.5 * second, total_s=2.0 * second, memory_bytes=0)
        for second in range(10)
    ]
    assert busy_shares(samples, 2, 7) == (0.75, 0.5)
    assert busy_shares(samples, 2.1, 2.9) == (None, None)


def test_growth_is_found_by_least_squares():
    assert slope([3, 5, 7, 9]) == pytest.approx(2)
    assert slope([4, 4, 4]) == pytest.approx(0)
    assert slope([4]) == 0


def run_of(wall_s, cpu_s, memory, successes=700):
    return {"wall_s": wall_s, "cpu_s": cpu_s, "peak_memory_mb": memory, "successes": successes}


def results():
    likeness = {OURS: {"ssim": 0.99, "psnr_db": 40.0}, THEIRS: {"ssim": 0.98, "psnr_db": 39.0}}
    bare = {"pictures": 700, "cpu_s": 1.4}
    ours, theirs = run_of(6, 4.5, 300) | {"cores_busy": 0.9, "cores_busy_by_ours": 0.7}, run_of(28, 34, 900)
    rounds = [{OURS: ours, THEIRS: theirs, "bare": bare, "bare_twice": bare}]
    starts = {OURS: [{"wall_s": 1, "cpu_s": 1}], THEIRS: [{"wall_s": 8, "cpu_s": 6}]}
    scenario = {"urls": 1_000, "rounds": rounds, "likeness": likeness}
    found = {"start_up": starts, "scenarios": {"https": scenario}}
    return found | {"medians": {"https": medians(scenario, starts)}}


def test_ratios_are_ours_over_theirs_with_and_without_start_up():
    figures = headline(results())
    assert figures["net_cpu_ratio"] == pytest.approx(3.5 / 28)
    assert figures["net_rate_ratio"] == pytest.approx(20 / 5)
    assert figures["cpu_ratio"] == pytest.approx(4.5 / 34)
    assert figures["rate_ratio"] == pytest.approx(28 / 6)
    assert figures["memory_ratio"] == pytest.approx(1 / 3)
    assert figures["startup_ratio"] == pytest.approx(1 / 8)
    assert figures["ssim_delta"] == pytest.approx(0.01)
    assert figures["limit_ratio"] == pytest.approx(5 / 2)
    assert figures["success_delta"] == 0
    assert figures["cores_busy"] == 0.9
    # Nothing is made up for what was not measured.
    assert figures["http_cpu_ratio"] is None
    assert figures["dead_hosts_ratio"] is None
    assert figures["memory_slope_mb_per_shard"] is None


def test_a_list_too_short_for_its_start_up_has_no_ratio():
    found = results()
    found["scenarios"]["https"]["rounds"][0][THEIRS] = run_of(7.9, 5.9, 900)
    found["medians"]["https"] = medians(found["scenarios"]["https"], found["start_up"])
    figures = headline(found)
    assert figures["net_cpu_ratio"] is None
    assert figures["net_rate_ratio"] is None
    assert figures["cpu_ratio"] == pytest.approx(4.5 / 5.9)


def test_every_scenario_and_figure_is_in_a_table():
    found = results()
    shown = tables(found | {"headline": headline(found)})
    assert [table.row_count for table in shown] == [4, 2, 13]
