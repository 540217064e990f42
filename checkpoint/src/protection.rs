//! Whether a store is sealed, what opens it, and for whom it can be opened besides (DESIGN §8, Keyslots).

use std::path::PathBuf;

use schemas::Recipient;

use crate::secrets::{Passphrase, RecipientKey, StoreKey};

/// Whether a store is sealed, and what opens it here.
///
/// A sealed store has a random root key; what is named here unlocks one of its keyslots.
#[derive(Debug, Clone)]
pub enum Protection {
    /// Not sealed: for data that is public anyway. Chain, checks and group commit are the same.
    Plain,
    /// 32 random bytes in a file for its owner only (mode 0600), outside of the store. `create` makes it if it
    /// is not there.
    KeyFile(PathBuf),
    /// 32 random bytes that the service manager hands over (systemd's `LoadCredential=` and its relatives).
    Credential {
        /// What the service manager says in `CREDENTIALS_DIRECTORY`.
        directory: PathBuf,
        /// The name of the credential: a plain file name.
        name: String,
    },
    /// A passphrase, stretched with Argon2id.
    Passphrase(Passphrase),
    /// A private key; the store was made for its public half.
    Recipient(RecipientKey),
    /// 32 random bytes that the caller has from somewhere else.
    Key(StoreKey),
}

/// Somebody for whom a root key is wrapped: what a new keyslot is made from.
#[derive(Debug, Clone)]
pub enum Holder {
    /// Whoever has this key file. It is made if it is not there.
    KeyFile(PathBuf),
    /// Whoever knows this passphrase.
    Passphrase(Passphrase),
    /// Whoever has the private half of this key. Nothing secret is needed to add such a holder.
    Recipient(Recipient),
    /// Whoever has these 32 bytes, also as a credential.
    Key(StoreKey),
}
