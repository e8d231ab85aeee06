//! What the registry knows only from the spool, and asks it for.

/// How far that is.
pub(super) enum FromSpool<T> {
    /// The spool has not told, and nobody has asked it since.
    Unknown,
    /// It has been asked.
    Asked,
    /// It has told.
    Told(T),
}

impl<T> FromSpool<T> {
    /// Whether it is to be asked for now; it counts as asked then.
    #[must_use]
    pub fn ask(&mut self) -> bool {
        let unknown = matches!(self, Self::Unknown);
        if unknown {
            *self = Self::Asked;
        }
        unknown
    }

    /// The spool could not tell: it may be asked again. What it told before stays.
    pub fn failed(&mut self) {
        if matches!(self, Self::Asked) {
            *self = Self::Unknown;
        }
    }

    pub fn is_told(&self) -> bool {
        matches!(self, Self::Told(_))
    }

    pub fn told(&self) -> Option<&T> {
        match self {
            Self::Told(told) => Some(told),
            Self::Unknown | Self::Asked => None,
        }
    }

    pub fn told_mut(&mut self) -> Option<&mut T> {
        match self {
            Self::Told(told) => Some(told),
            Self::Unknown | Self::Asked => None,
        }
    }
}
