"""The miniature's tokenizer: CLIP's kind of byte-pair encoding, merged until each word of the world is one token."""

import itertools
import json

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from ..world import COLOURS, LOOKS, OBJECTS
from ..world.captions import DOING, HELD_OUT, LOOK, OVER, STILL, TEMPLATES

LENGTH = 28  # tokens of a prompt, begin and end included


def sentences() -> list[str]:
    """Text that holds every word of the captions."""
    tables = [*OVER.values(), *DOING.values(), *LOOK.values(), TEMPLATES, HELD_OUT, STILL]
    return [
        " ".join(itertools.chain(*tables)).replace("{", " ").replace("}", " "),
        " ".join([*OBJECTS, *COLOURS, "and still standing look style"]),
    ]


def vocabulary() -> list[str]:
    """Every word that a caption can hold."""
    return sorted(set(" ".join(sentences()).replace(",", " ").split()))


def tokenizer(extra: str = "") -> CLIPTokenizer:
    """A CLIPTokenizer of about 900 tokens; any other word becomes several tokens, which shows that it is unknown."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ends = [a + "</w>" for a in alphabet]  # in a fixed order: else chance breaks ties and words change their numbers
    bpe.train_from_iterator(
        [*sentences(), extra],
        trainers.BpeTrainer(vocab_size=5000, initial_alphabet=alphabet, special_tokens=[*alphabet, *ends],
                            end_of_word_suffix="</w>", show_progress=False),
    )
    merges = [tuple(m) for m in json.loads(bpe.to_str())["model"]["merges"]]
    tokens = [
        *alphabet,
        *ends,
        *["".join(m) for m in merges],
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab, merges, model_max_length=LENGTH)


def judge_tokenizer() -> CLIPTokenizer:
    """The judge's own, which also has a word for each of the looks."""
    return tokenizer(" ".join(LOOKS))
