"""From texts to token ids: prompt files, chat templates, subjects, selectors and padded batches."""
