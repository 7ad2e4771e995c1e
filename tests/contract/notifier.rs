//! The notifier port.
