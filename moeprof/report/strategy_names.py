"""What readers call the strategies of an advice, on the terminal, in figures and on the page."""

from moeprof.plan.advice import (
    ALL_RAM,
    ANY_EXPERTS,
    CACHE,
    HOT_SET,
    HOT_SET_AND_CACHE,
    ORACLE,
    WHOLE_LAYERS,
)

# As they stand in the middle of a sentence.
IN_SENTENCE = {
    ALL_RAM: "all experts in RAM",
    WHOLE_LAYERS: "whole layers",
    ANY_EXPERTS: "arbitrary experts",
    HOT_SET: "a hot set",
    CACHE: "a cache",
    HOT_SET_AND_CACHE: "a hot set with cache",
    ORACLE: "an oracle",
}
LABELS = {name: words.removeprefix("a ").removeprefix("an ") for name, words in IN_SENTENCE.items()}
