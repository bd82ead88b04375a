"""What is replaced in a webserver's process, held against what it replaces."""

import json

import pytest
from graphql import ExecutionContext, build_schema, execute, parse
from starlette.responses import JSONResponse

from laion_assets.defs.webserver import complete_list_value, render

SCHEMA = build_schema("type Query { sure: [String!]! maybe: [String] numbers: [Int!] }")


class Quick(ExecutionContext):
    complete_list_value = complete_list_value


@pytest.mark.parametrize(
    "given",
    [["a", "b"], [], ["a", None], ["a", 1], [True, 2.5], ("a", "b"), {"a": 1}, "ab", None, ["a", object()]],
)
@pytest.mark.parametrize("field", ["sure", "maybe", "numbers"])
def test_lists_are_answered_as_before(field, given):
    def answer(context):
        result = execute(SCHEMA, parse(f"{{ {field} }}"), {field: given}, execution_context_class=context)
        return result.data, [error.message for error in result.errors or ()]

    assert answer(Quick) == answer(ExecutionContext)


def test_a_list_of_strings_is_handed_over_whole():
    keys = [f"{number:05d}" for number in range(100)]
    result = execute(SCHEMA, parse("{ sure }"), {"sure": keys}, execution_context_class=Quick)
    assert result.data["sure"] is keys


@pytest.mark.parametrize(
    "content",
    [
        {"data": {"keys": ["00000", "ä€😀", "</script>\u2028\x00"], "none": None, "yes": True, "no": 1.5e-7}},
        {"more than 64 bits": 2**70, "nested": [[], {}, [1, -2]]},
        "text",
        [],
    ],
)
def test_answers_are_written_as_before(content):
    response = JSONResponse({})
    written = render(response, content)
    assert json.loads(written) == json.loads(response.render(content)) == content


def test_what_no_json_can_hold_is_refused_as_before():
    with pytest.raises(TypeError):
        render(JSONResponse({}), {"set": {1, 2}})
