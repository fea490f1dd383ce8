"""Convert a csv table to conversations: python convert_rows.py INPUT.csv OUTPUT.jsonl."""

import csv
import json
import sys


def messages(row: dict[str, str]) -> list[dict[str, str]]:
    question = f"{row['subject']}\n\n{row['body']}"
    return [{"role": "user", "content": question}, {"role": "assistant", "content": row["answer"]}]


source, target = sys.argv[1:]
with open(source, encoding="utf-8", newline="") as rows, open(target, "w", encoding="utf-8") as output:
    for row in csv.DictReader(rows):
        output.write(json.dumps({"messages": messages(row)}, ensure_ascii=False) + "\n")
