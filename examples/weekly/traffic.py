"""A week of served tickets, made up: what was trained on in other words, and an intent that no row has, "complaint".

    python examples/weekly/traffic.py --seed 1 --rows 200 --new 0.2 > log.jsonl

Each line is a request and its reply, as a proxy before an OpenAI-compatible server logs them; `tunetrail collect` and
`tunetrail drift` read it. The release that answers knows no complaint: it says "refund", and people give a thumb down.
"""

import argparse
import json
import random
from collections.abc import Iterator
from typing import Any

PRODUCTS = ["backpack", "blender", "camera", "headphones", "jacket", "kettle", "keyboard", "lamp", "laptop", "watch"]
KNOWN = {
    "tracking": ["any news on the {product} from {order}", "parcel {order} with my {product} is nowhere to be seen"],
    "invoice": ["accounting wants the bill for {order}, the {product}", "send the receipt of {order} ({product}) over"],
    "warranty": ["the {product} of {order} died, repair it", "{order}: a fault in the {product}, is it covered"],
}
NEW = {
    "complaint": [
        "your agent was rude when I rang about the {product} of {order}",
        "three calls over {order}, each time hung up on me; and that for a {product}",
        "shame on your staff: nobody listened about {order} and the {product}",
        "I want to speak to a manager about how I was treated with {order}, a {product}",
    ]
}
WHO = ["", "Ana here. ", "Dear all, ", "hi! ", "This is Tom from Leeds. ", "Good evening. ", "To whom it may concern: "]
END = ["", " Thanks.", " That was on Monday.", " I am waiting since May.", " Regards, Kim", " Please answer by mail."]


def traffic(seed: int, rows: int, new: float) -> Iterator[dict[str, Any]]:
    """Lines of the log, each with `truth`, the right answer, which no server would know; `new` is a share, 0 to 1."""
    draw = random.Random(seed)
    for number in range(rows):
        kinds = NEW if draw.random() < new else KNOWN
        intent = draw.choice(sorted(kinds))
        product, order = draw.choice(PRODUCTS), f"{draw.choice('ABCDEFGH')}-{draw.randrange(1000, 9999)}"
        words = draw.choice(kinds[intent]).format(product=product, order=order)
        truth = {"intent": intent, "product": product, "order": order, "urgent": False}
        said = truth if kinds is KNOWN else truth | {"intent": "refund"}
        yield {
            "request": {"messages": [{"role": "user", "content": draw.choice(WHO) + words + draw.choice(END)}]},
            "response": {
                "model": "support-tickets@1.0.0",
                "created": 1795500000 + 60 * number,
                "choices": [{"message": {"role": "assistant", "content": json.dumps(said)}, "finish_reason": "stop"}],
            },
            **({"feedback": "thumbs_down"} if said != truth else {}),
            "truth": json.dumps(truth),
        }


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--rows", type=int, default=200)
    options.add_argument("--new", type=float, default=0.2, help="share of requests of the new intent")
    for line in traffic(**vars(options.parse_args())):
        print(json.dumps(line))
