"""litellm's files and batches: bytes without a name, a batch of embeddings or chats, and its answers."""

import json
import os
import time

import litellm

MODEL = os.environ["CLIENTS_MODEL"]
API = {
    "custom_llm_provider": "openai",
    "api_base": os.environ["OPENAI_BASE_URL"],
    "api_key": os.environ["OPENAI_API_KEY"],
}


def main() -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "a row"}], "max_tokens": 4}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    file = litellm.create_file(file=json.dumps(line).encode(), purpose="batch", **API)
    batch = litellm.create_batch(
        completion_window="24h", endpoint="/v1/chat/completions", input_file_id=file.id, metadata={"k": "v"}, **API
    )
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        time.sleep(0.2)  # the library has no call that waits
        batch = litellm.retrieve_batch(batch_id=batch.id, **API)
    assert batch.status == "completed", batch
    content = litellm.file_content(file_id=batch.output_file_id, **API).content
    assert json.loads(content)["custom_id"] == "a"
    assert any(one.id == batch.id for one in litellm.list_batches(**API).data)


main()
