"""The images of chats: `image_chats` opens them, and `image_prompts` makes prompts with the model's `chat_processor`.

`prompt_images` has what the decoding loop knows about the images of a prompt.
"""
