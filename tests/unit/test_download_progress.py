import time

from laion_assets.download_progress import DownloadProgress, every
from laion_assets.outcomes import Outcome


def progress(total, **outcomes):
    made = DownloadProgress(total=total, started_s=time.monotonic() - 10)
    for name, count in outcomes.items():
        for _ in range(count):
            made.add(Outcome(name), 50_000 if name == "success" else 0)
    return made


def test_it_is_told_in_one_line():
    told = progress(1000, success=300, http_4xx=90, dns=8, timeout=1, tls=1).describe()
    assert told.startswith("400 of 1,000 URLs, ")
    assert ", 40 URLs/s, 30 pictures/s, 75.0%, 15 MB, 0:1" in told
    assert told.endswith("; http_4xx 90, dns 8, timeout 1, tls 1")
    assert "\n" not in told


def test_many_classes_of_failure_are_cut_to_the_most_frequent():
    counts = {
        name: count
        for count, name in enumerate(
            ("dns", "tls", "connect", "timeout", "bad_url", "truncated", "protocol"), 1
        )
    }
    told = progress(100, **counts).describe()
    assert told.endswith("; protocol 7, truncated 6, bad_url 5, timeout 4, connect 3, others 3")


def test_nothing_is_left_to_tell_of_at_the_beginning_and_at_the_end():
    assert progress(0).describe().startswith("0 of 0 URLs, 0 URLs/s, 0 pictures/s, 0.0%")
    assert DownloadProgress(total=5).left_s is None
    assert "left" not in progress(2, success=2).describe()


def test_what_an_earlier_run_had_done_is_no_speed_of_this_one():
    resumed = DownloadProgress(total=1000, started_s=time.monotonic() - 10)
    for _ in range(500):
        resumed.resume(Outcome.SUCCESS, 1)
    for _ in range(100):
        resumed.add(Outcome.SUCCESS, 1)
    assert 9 < resumed.urls_per_s <= 10
    assert 9 < resumed.images_per_s <= 10
    assert resumed.done == 600


def test_a_follower_hears_the_end_and_little_before_it():
    told = []
    follow = every(3600, lambda made: told.append(made.done))
    made = DownloadProgress(total=50)
    for _ in range(50):
        made.add(Outcome.SUCCESS, 1)
        follow(made)
    assert told == [50]
    told.clear()
    follow = every(0, lambda made: told.append(made.done))
    follow(DownloadProgress(total=50))
    assert told == [0]
