"""Writes rows in the columns of EleutherAI/drop, made of sentences and numbers of our own.

usage: python3 drop_rows.py OUT.jsonl COUNT [SEED]
"""

import json
import random
import sys

out, count = sys.argv[1], int(sys.argv[2])
rng = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 0)
teams = ["The Bears", "the Lions", "An Eagle", "St. Louis", "Bay-Town", "O'Neil's crew"]
words = ["yards", "field goals", "touchdowns", "settlers", "ships", "votes"]
months = ["", "January", "May", "October"]


def number():
    return rng.choice([str(rng.randint(0, 5000)), f"{rng.randint(1, 99)}.{rng.randint(0, 9)}", "1,234", "12%"])


def answer():
    empty = {"number": "", "date": {"day": "", "month": "", "year": ""}, "spans": []}
    kind = rng.choice(["number", "date", "span", "spans", "spans"])
    if kind == "number":
        return {**empty, "number": number()}
    if kind == "date":
        day = rng.choice(["", str(rng.randint(1, 28))])
        return {**empty, "date": {"day": day, "month": rng.choice(months), "year": rng.choice(["", "1864"])}}
    many = 1 if kind == "span" else rng.randint(2, 4)
    spans = [f"{rng.choice(teams)} {rng.choice(['', number(), rng.choice(words)])}".strip() for _ in range(many)]
    return {**empty, "spans": spans}


with open(out, "w", encoding="utf-8") as file:
    for index in range(count):
        facts = [f"{rng.choice(teams)} had {number()} {rng.choice(words)} in {rng.randint(1700, 2020)}." for _ in range(8)]
        others = [answer() for _ in range(rng.randint(0, 3))]
        row = {
            "section_id": f"made_{index // 3}",
            "passage": " ".join(facts),
            "query_id": f"made-{index}",
            "question": f"How many {rng.choice(words)} did {rng.choice(teams)} have?",
            "answer": {**answer(), "worker_id": "", "hit_id": ""},
            "validated_answers": {
                **{key: [other[key] for other in others] for key in ("number", "date", "spans")},
                "worker_id": ["" for _ in others],
                "hit_id": ["" for _ in others],
            },
        }
        file.write(json.dumps(row) + "\n")
