from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_assets.fetch.urls import MAX_URL_LENGTH, BadUrl, parse_redirect, parse_url, registered_domain

REAL_URLS = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "web_urls" / "url_text.parquet"


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://example.com", "http://example.com/"),
        ("  HTTPS://Example.COM/A?b=C#frag ", "https://example.com/A?b=C"),
        ("http://bücher.de/ä b|c", "http://xn--bcher-kva.de/%C3%A4%20b%7Cc"),
        ("http://example.com/%7Ea%2Fb%zz", "http://example.com/%7Ea%2Fb%zz"),
        ("http://example.com?q=<x>", "http://example.com/?q=%3Cx%3E"),
        ("http://foo_bar.co.uk:8080/a", "http://foo_bar.co.uk:8080/a"),
        ("http://[2606:4700::1111]/a", "http://[2606:4700::1111]/a"),
        ("http://example.com/a\nb", "http://example.com/ab"),
        ("http://example.com/\ud800\udcff", "http://example.com/%EF%BF%BD%FF"),
    ],
)
def test_urls_are_spelled_in_ascii_and_otherwise_left_alone(text, url):
    assert parse_url(text).url == url


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "scheme"),
        ("//example.com/a", "scheme"),
        ("ftp://example.com/a", "scheme"),
        ("file:///etc/passwd", "scheme"),
        ("javascript:alert(1)", "scheme"),
        ("gopher://127.0.0.1:25/", "scheme"),
        ("http://", "no host"),
        ("http:///etc/passwd", "no host"),
        ("http://user@example.com/", "names a user"),
        ("http://user:secret@example.com/", "names a user"),
        ("http://good.com\\@evil.com/", "names a user"),
        ("http://exa mple.com/", "malformed host"),
        ("http://a..b/", "malformed host"),
        ("http://a%41.com/", "malformed host"),
        (f"http://{'a' * 64}.com/", "malformed host"),
        (f"http://{'a.' * 140}com/", "malformed host"),
        ("http://[fe80::1%25lo]/", "malformed host"),
        ("http://[::1/", "malformed URL"),
        ("http://example.com:99999/", "malformed URL"),
        ("http://example.com:0/", "malformed URL"),
        ("http://example.com:80a/", "malformed URL"),
        ("http://example.com/" + "a" * MAX_URL_LENGTH, "too long"),
        ("http://example.com/" + "ä" * (MAX_URL_LENGTH // 4), "too long"),
    ],
)
def test_other_urls_are_refused_with_a_reason(text, reason):
    with pytest.raises(BadUrl, match=reason):
        parse_url(text)


@settings(deadline=None, max_examples=100)
@given(
    st.text(max_size=60), st.sampled_from(["", "http://", "https://example.com/", "http://[", "http://a@"])
)
def test_any_text_is_a_clean_url_or_refused(text, start):
    try:
        target = parse_url(start + text)
    except BadUrl:
        return
    assert target.url.isascii()
    assert target.url.isprintable()
    assert not set(' <>\\^`{|}"') & set(target.url)
    assert parse_url(target.url) == target  # and nothing is escaped twice


def test_redirects_are_relative_to_where_they_came_from_and_checked_alike():
    base = parse_url("https://example.com/a/b?c")
    assert parse_redirect(base, "../d").url == "https://example.com/d"
    assert parse_redirect(base, "//other.org/x").url == "https://other.org/x"
    assert parse_redirect(base, "/\udce4").url == "https://example.com/%E4"
    for location in ("file:///etc/passwd", "http://user@x.com/", "http://[", "ftp://x/"):
        with pytest.raises(BadUrl):
            parse_redirect(base, location)


@pytest.mark.parametrize(
    ("host", "domain"),
    [
        ("cdn.shopify.com", "shopify.com"),
        ("a.b.example.co.uk", "example.co.uk"),
        ("a.github.io", "a.github.io"),
        ("co.uk", "co.uk"),
        ("localhost", "localhost"),
        ("127.0.0.1", "127.0.0.1"),
        ("2606:4700::1111", "2606:4700::1111"),
        ("www.example.com.", "example.com"),
    ],
)
def test_hosts_of_one_owner_share_a_domain(host, domain):
    assert registered_domain(host) == domain


def test_real_urls_are_nearly_all_accepted():
    if not REAL_URLS.is_file():
        pytest.skip(f"{REAL_URLS} is not there")
    urls = pq.read_table(REAL_URLS, columns=["URL"])["URL"].to_pylist()
    refused = []
    for url in urls:
        try:
            parse_url(url)
        except BadUrl as error:
            refused.append((url, str(error)))
    assert len(urls) > 9_000
    assert len(refused) < len(urls) / 1_000, refused[:20]
