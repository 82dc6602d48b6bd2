from time import thread_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posthouse.embedded.standin.embedding import embedded
from posthouse.embedded.standin.prose import reads_well, sentences

DOCUMENT = """---
title: The queue has a front matter that nobody reads.
---
# Queue <a id="x"></a>

The queue holds only what waits, and
nothing that *runs* already. It is e.g. empty when every worker is idle.

```text
The fence hides this sentence which would read well.
```

~~~
Another fence hides this sentence which would read well.
~~~

    Indented code hides this sentence which would read well.

| The table hides | this sentence which would read well. |

Workers
-------

- A worker claims a run with [one script](scripts.md#claim "claim") on the server[^1].
- Short item.
- [ ] The `claim` command raises the epoch by one each time.
1. Does a question make a good sentence for a report?

> A quoted paragraph counts as prose when it is whole.

<!-- The comment hides this sentence which would read well. -->
![The image hides this sentence.](a.png) The text after an image stays where it is.
Read https://example.org/page for all that is left out here.
This page is about the queue and nothing else at all.

[^1]: The footnote hides this sentence which would read well.
"""


def test_only_whole_plain_sentences_stay() -> None:
    assert [s.text for s in sentences(DOCUMENT)] == [
        "The queue holds only what waits, and nothing that runs already.",
        "It is e.g. empty when every worker is idle.",
        "A worker claims a run with one script on the server.",
        "The `claim` command raises the epoch by one each time.",
        "A quoted paragraph counts as prose when it is whole.",
        "The text after an image stays where it is.",
    ]


def test_a_sentence_knows_its_heading() -> None:
    assert {s.heading for s in sentences(DOCUMENT)} == {"Queue", "Workers"}


def test_text_without_markdown_is_read_line_by_line() -> None:
    text = "Getting started\nInstall the package with the usual tools first.\nStart a worker on it."
    assert [s.text for s in sentences(text)] == [
        "Install the package with the usual tools first.",
    ]


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="aA .\n#`*_[]()|<>-!~\"'0", max_size=300))
def test_no_text_is_too_strange(text: str) -> None:
    for sentence in sentences(text):
        assert reads_well(sentence.text)
        assert "\n" not in sentence.text
        assert "[" not in sentence.text


@pytest.mark.parametrize(
    "unit", ["[", "![", "[^", "*a", "<!--", "<a ", "> ", "- ", "`", "a. A", '"', "("]
)
def test_a_hostile_text_takes_no_long_time(unit: str) -> None:
    whole = "A worker claims a run with one script on the server."
    begun = thread_time()
    found = sentences(f"{whole}\n\n{unit * 10_000}")
    assert thread_time() - begun < 2  # seconds, a bound against quadratic work; it takes 0.1
    assert [s.text for s in found] == [whole]


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=80), st.integers(1, 300))
def test_a_vector_has_length_one(text: str, dimensions: int) -> None:
    vector = embedded(text, dimensions)
    assert len(vector) == dimensions
    assert sum(value * value for value in vector) == pytest.approx(1)
    assert vector == embedded(text, dimensions)
