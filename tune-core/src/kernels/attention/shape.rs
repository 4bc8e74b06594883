//! What attention is told of a layer.

/// The heads of an attention layer and how they look back.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct AttentionShape {
    /// Query heads.
    pub(crate) heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub(crate) kv_heads: usize,
    /// Elements of a head.
    pub(crate) head_dim: usize,
    /// Factor on the scores, usually `1 / sqrt(head_dim)`.
    pub(crate) scale: f64,
    /// How many positions a token sees, itself included; all earlier ones if `None`.
    pub(crate) window: Option<usize>,
}

impl AttentionShape {
    /// The first key that the query at `position` sees.
    pub(crate) fn first_key(&self, position: usize) -> usize {
        self.window.map_or(0, |w| (position + 1).saturating_sub(w))
    }
}
