"""instructor's batches in memory: its requests ask for structured output, which is answered line by line."""

import os
import time

from instructor.batch import BatchProcessor
from pydantic import BaseModel


class Person(BaseModel):
    name: str


def main() -> None:
    processor = BatchProcessor(f"openai/{os.environ['CLIENTS_MODEL']}", Person)
    messages = [[{"role": "user", "content": f"row {at}"}] for at in range(2)]
    buffer = processor.create_batch_from_messages(messages_list=messages, file_path=None, max_tokens=4)
    batch_id = processor.submit_batch(buffer)
    while processor.get_batch_status(batch_id)["status"] not in ("completed", "failed", "expired", "cancelled"):
        time.sleep(0.2)  # the library has no call that waits
    assert processor.get_batch_status(batch_id)["status"] == "completed"


main()
