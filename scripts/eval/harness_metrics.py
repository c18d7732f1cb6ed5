"""Scores made-up answers with the Python functions of lm-evaluation-harness 0.4.13, for harness-metrics.mjs.

usage: python3 harness_metrics.py OUT.jsonl COUNT [SEED]

OUT has one case a line: {"kind", "input", "output"}. Kinds are the normal form of a DROP answer, its
scores against one right answer of several spans and against several annotators, BBH's filter with
exact_match, and pass@k from its definition (the metric itself comes from the network).
"""

import importlib.util
import json
import math
import os
import random
import sys

import harness_requests  # noqa: F401  (replaces modules that are not installed)
import lm_eval
from lm_eval.api.metrics import exact_match_fn
from lm_eval.filters.extraction import RegexFilter

base = os.path.join(os.path.dirname(lm_eval.__file__), "tasks")
spec = importlib.util.spec_from_file_location("drop_utils", os.path.join(base, "drop", "utils.py"))
drop = importlib.util.module_from_spec(spec)
spec.loader.exec_module(drop)
thoughts = RegexFilter(regex_pattern="(?<=the answer is )(.*)(?=.)")

out, count = sys.argv[1], int(sys.argv[2])
rng = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 0)
words = ["Bears", "the", "a", "an", "The", "A", "yard", "yards", "St.", "O'Neil's", "field", "goal", "Theatre", "Évora",
         "straße", "İzmir", "Α", "ΟΔΟΣ", "東京", "naïve", "an_", "_the", "a1", "1a", "the’s", "“a”", "—", "…", "$", "%",
         "!?", "(b)", "x\u00a0y", "\u2028", "tab\tbed", "new\nline", "\x1c", "\x85", "", " "]  # fmt: skip
numbers = ["0", "7", "12", "3.0", "3", "3.5", "-4", "+4", "1,234", "1234", "1e5", "1E-7", "1e16", "123456789012345678", ".5", "5.",
           "0.1", "0.30000000000000004", "1_000", "1__0", "_1", "inf", "-Infinity", "nan", "NaN", "1e999", "0x10", "٣", "１２", "½",
           "²", "12%", "$5", "5th", "1.2.3", "--5", "1e-5", "0.0001", "0.00001", "9007199254740993", "1e22", "-0", "-0.0"]  # fmt: skip


def token():
    return rng.choice(words) if rng.random() < 0.6 else rng.choice(numbers)


def span():
    return rng.choice(["", " "]) + "".join(token() + rng.choice([" ", " ", "-", "  "]) for _ in range(rng.randint(0, 4)))


def changed(text):
    """A text that shares much with another one."""
    parts = text.split(" ")
    for _ in range(rng.randint(0, 2)):
        place = rng.randrange(len(parts))
        parts[place] = rng.choice([token(), parts[place].upper(), "the", ""])
    if rng.random() < 0.3:
        rng.shuffle(parts)
    return " ".join(parts)


def plain(values):
    return {name: float(value) for name, value in values.items()}


def annotated():
    empty = {"number": "", "date": {"day": "", "month": "", "year": ""}, "spans": []}
    kind = rng.randrange(3)
    if kind == 0:
        return {**empty, "number": rng.choice(numbers)}
    if kind == 1:
        return {**empty, "spans": [span() for _ in range(rng.randint(1, 4))]}
    return {**empty, "date": {"day": rng.choice(["", "3"]), "month": rng.choice(["", "May"]), "year": rng.choice(["", "1864"])}}


def spans_case():
    gold = [span() for _ in range(rng.randint(1, 6))]
    predicted = [changed(rng.choice(gold)) if rng.random() < 0.7 else span() for _ in range(rng.randint(1, 6))]
    em, f1 = drop.get_metrics(predicted, tuple(gold))
    return {"predicted": predicted, "gold": gold}, {"em": float(em), "f1": float(f1)}


def row_case():
    others = [annotated() for _ in range(rng.randint(0, 3))]
    row = {"answer": annotated(), "validated_answers": {key: [other[key] for other in others] for key in ("number", "date", "spans")}}
    answers = drop.get_answers(row)
    answer = changed(" ".join(rng.choice(answers))) if rng.random() < 0.8 else span()
    return {"row": row, "answer": answer}, plain(drop.process_results({"answers": answers}, [answer]))


def thought_case():
    target = rng.choice(["(A)", "True", "valid", "] ) }", "-34", "a b c"])
    said = rng.choice([target, target + ".", target + ".\n", f" {target} .", "", ".", "(B).", "x\u2028y.", "\x85" + target + ".", "\ud83d\ude00"
                       .encode("utf-16", "surrogatepass").decode("utf-16")])  # fmt: skip
    start = rng.choice(["", "First.\n", "So the answer is\n", "the answer is \n"])
    text = start + rng.choice(["the answer is ", "So the answer is ", "The answer is "]) + said + rng.choice(["", " the answer is (C).", "\x00"])
    found = thoughts.apply([[text]], [{}])[0][0]
    score = exact_match_fn(references=[target], predictions=[found])["exact_match"]
    return {"text": text, "target": target}, {"found": found, "exact_match": float(score)}


def pass_case():
    n = rng.randint(1, 64)
    passed, k = rng.randint(0, n), rng.randint(1, n)
    return {"n": n, "passed": passed, "k": k}, 1 - math.comb(n - passed, k) / math.comb(n, k)


def normal_case():
    text = span()
    return text, drop._normalize(text)


makers = {"normal": normal_case, "spans": spans_case, "row": row_case, "thought": thought_case, "pass": pass_case}
with open(out, "w", encoding="utf-8") as file:
    for kind, make in makers.items():
        for _ in range(count):
            given, output = make()
            file.write(json.dumps({"kind": kind, "input": given, "output": output}) + "\n")
