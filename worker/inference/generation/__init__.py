"""Text generation by Stoker's own loop: from prompts to tokens, rows joining and leaving as they go.

`prompts` and `chat` templates make token ids, `decoding` continues rows together over `rowcache` and `prefixes`,
`sampling` draws tokens, `completions` and `continuations` make outputs; `vllm_decoding` hands all of it to vLLM.
"""
