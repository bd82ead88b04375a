"""What rules found, as the JUnit XML that CI systems show."""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree import ElementTree as ET

from laion_assets.quality.checks import Rule, Verdict


def junit_xml(verdicts: Iterable[tuple[Rule, str, Verdict]]) -> bytes:
    """A test suite for each stage, a test case for each rule and partition.

    Only a rule that blocks is a failure; of another that fails, the case passes and says ``warning``.

    Args:
        verdicts: a rule, a partition key, and what the rule found there.

    Returns:
        The document, in UTF-8.
    """
    root = ET.Element("testsuites")
    suites: dict[str, ET.Element] = {}
    for rule, key, verdict in verdicts:
        suite = suites.get(rule.stage)
        if suite is None:
            suite = suites[rule.stage] = ET.SubElement(root, "testsuite", name=rule.stage)
        case = ET.SubElement(suite, "testcase", classname=f"{rule.stage}.{rule.name}", name=key)
        if not verdict.passed:
            # Examples are printable already, and ElementTree escapes what is markup.
            text = f"{rule.description}\n{verdict.offending} of {verdict.rows}: {', '.join(verdict.examples)}"
            if rule.blocking:
                ET.SubElement(case, "failure", message=rule.description).text = text
            else:
                ET.SubElement(case, "system-out").text = f"warning: {text}"
    for suite in suites.values():
        suite.set("tests", str(len(suite)))
        suite.set("failures", str(len(suite.findall("testcase/failure"))))
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True))
