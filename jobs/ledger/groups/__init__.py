"""Several jobs as one thing: `arrays` and `crons` make jobs; `batches` are OpenAI's, `batch_ends` completes them."""
