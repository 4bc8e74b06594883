//! What a run reports while it trains: console, JSON lines, TensorBoard.
