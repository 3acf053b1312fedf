"""Text generation with in-flight batching by Stoker's own loop, or with vLLM.

`prompts` makes token ids (`images` those of chats with images), `decoding` continues rows together with `rowcache` and
`prefixes`, `sampling` chooses tokens, `completions` makes outputs from `continuations`; `vllm_decoding` leaves the
computation to vLLM.
"""
