from xml.etree import ElementTree as ET

from laion_assets.quality.checks import Rule, Verdict
from laion_assets.quality.junit import junit_xml


def rule(name, *, blocking, stage="images"):
    return Rule(
        name=name, stage=stage, blocking=blocking, description=f"What {name} is.", check=lambda _: None
    )


def verdict(*, passed, examples=()):
    return Verdict(passed=passed, offending=len(examples), rows=9, examples=examples)


def test_a_suite_a_stage_and_a_case_a_partition():
    keys = rule("keys", blocking=True)
    found = [
        (keys, "00000", verdict(passed=True)),
        (keys, "00001", verdict(passed=False, examples=("000010004: twice",))),
        (rule("share", blocking=False), "00001", verdict(passed=False, examples=("0.2",))),
        (rule("rows", blocking=True, stage="samples"), "00000", verdict(passed=True)),
    ]
    root = ET.fromstring(junit_xml(found))
    assert root.tag == "testsuites"
    assert [suite.attrib for suite in root] == [
        {"name": "images", "tests": "3", "failures": "1"},
        {"name": "samples", "tests": "1", "failures": "0"},
    ]
    assert [(case.get("classname"), case.get("name")) for case in root[0]] == [
        ("images.keys", "00000"),
        ("images.keys", "00001"),
        ("images.share", "00001"),
    ]
    passed, failed, warned = root[0]
    assert list(passed) == []
    assert failed.find("failure").get("message") == "What keys is."
    assert "1 of 9: 000010004: twice" in failed.find("failure").text
    assert warned.find("failure") is None
    assert warned.find("system-out").text.startswith("warning: What share is.")


def test_what_a_data_set_says_is_no_markup():
    hostile = '</failure><testcase name="made up"/>&amp;]]>'
    root = ET.fromstring(
        junit_xml([(rule("keys", blocking=True), "00000", verdict(passed=False, examples=(hostile,)))])
    )
    assert len(root.findall(".//testcase")) == 1
    assert hostile in root.find(".//failure").text
