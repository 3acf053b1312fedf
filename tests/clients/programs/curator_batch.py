"""bespokelabs-curator's batches: it uploads bytes without a name, and reads its answers back as a data set."""

import os

from bespokelabs import curator


def main() -> None:
    model = curator.LLM(
        model_name=os.environ["CLIENTS_MODEL"],
        backend="openai",
        batch=True,
        backend_params={
            "base_url": os.environ["OPENAI_BASE_URL"],
            "batch_check_interval": 1,
            "require_all_responses": True,
        },
        generation_params={"max_tokens": 4},
    )
    answers = model(["row 0", "row 1"])
    assert len(answers.dataset) == 2, answers


main()
