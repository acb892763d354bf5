"""Networks that the agents share: simplicial embeddings, torsos, actors, critics, normalisers."""
