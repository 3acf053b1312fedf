"""The openai SDK with inputs that have no name, as bespokelabs-curator uploads them, and by its own wait for a file."""

import asyncio
import io
import json
import os
import time

import openai

MODEL = os.environ["CLIENTS_MODEL"]
LINES = b"".join(
    json.dumps(
        {
            "custom_id": str(at),
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": MODEL,
                "messages": [{"role": "user", "content": f"row {at}"}],
                "max_completion_tokens": 4,
                "top_k": 5,
                "repetition_penalty": 1.1,
            },
        }
    ).encode()
    + b"\n"
    for at in range(3)
)


async def upload_as_curator_does() -> str:
    async with openai.AsyncOpenAI() as client:
        uploaded = await client.files.create(file=LINES, purpose="batch")
        return (await client.files.wait_for_processing(uploaded.id)).id


def main() -> None:
    with openai.OpenAI() as client:
        ids = [
            client.files.create(file=LINES, purpose="batch").id,
            client.files.create(file=io.BytesIO(LINES), purpose="batch").id,
            client.files.create(file=("rows.jsonl", LINES), purpose="batch").id,
            asyncio.run(upload_as_curator_does()),
        ]
        for file_id in ids:
            batch = client.batches.create(
                input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"f": file_id}
            )
            while batch.status not in ("completed", "failed", "expired", "cancelled"):
                time.sleep(0.2)  # the library has no call that waits
                batch = client.batches.retrieve(batch.id)
            assert batch.status == "completed", batch
            answers = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
            assert [answer["custom_id"] for answer in answers] == ["0", "1", "2"]


main()
