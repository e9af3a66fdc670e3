"""The tokenizers: a word has the same number in every process, and the one that the shipped weights learned."""
import json
import subprocess
import sys

import pytest
from transformers import CLIPTokenizer

from animkit import samples
from animkit.miniature import words

SAY = """
import json
from animkit.miniature import words
print(json.dumps([t.get_vocab() for t in (words.tokenizer(), words.judge_tokenizer())]))
"""


def test_the_same_numbers_in_every_process():
    """The trainer of byte-pair encodings breaks ties by a hash that each process seeds anew."""
    said = [json.loads(subprocess.run([sys.executable, "-c", SAY], capture_output=True, text=True, check=True).stdout)
            for _ in range(3)]
    assert said[0] == said[1] == said[2] == [words.tokenizer().get_vocab(), words.judge_tokenizer().get_vocab()]


def test_each_word_of_the_world_is_one_token():
    tokenizer = words.tokenizer()
    assert all(len(tokenizer(word).input_ids) == 3 for word in words.vocabulary())  # begin, the word, end


@pytest.mark.parametrize("name, make", [("miniature/tokenizer", words.tokenizer), ("judge", words.judge_tokenizer)])
@pytest.mark.skipif("miniature" not in samples.names(), reason="the miniature's weights do not ship yet")
def test_the_shipped_ones_have_the_same_words(name, make):
    shipped, made = CLIPTokenizer.from_pretrained(samples.path(name)), make()
    assert [w for w in words.vocabulary() if shipped(w).input_ids != made(w).input_ids] == []
