//! The registry of every error that a user can meet (DESIGN §10).
//!
//! One table, one place: the stable code, the exit status, what it means and what to do next. Libraries
//! return their own typed errors and map them here with [`Coded`]; programs print them; `vat help CODE`
//! explains them; `docs/errors.md` is generated from them; a test fails when a code is used nowhere.
//!
//! Over a session an error travels as the text of a Cap'n Proto exception, `code: message`
//! ([`ErrorCode::to_wire`], [`RemoteError::parse`]), so that every client, whatever its language, can read
//! both.

use std::{fmt, str::FromStr};

/// What a process tells its parent (DESIGN §10). The numbers are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// It failed, for a reason that none of the others names.
    Failed = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// The thing named does not exist.
    NotFound = 3,
    /// It exists, and this caller may not.
    Denied = 4,
    /// No way leads there now.
    Unreachable = 5,
    /// A way was found, and no answer came in time.
    Timeout = 6,
    /// It already exists, is in use, or somebody else was first.
    Conflict = 7,
    /// A limit was reached.
    Limit = 8,
    /// Something is not what it was signed, sealed or stored as.
    Integrity = 9,
    /// Done, but something that should have worked did not.
    Degraded = 10,
    /// Two programs of versions that do not understand each other.
    Version = 11,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        (exit as u8).into()
    }
}

/// An error that has a stable code.
pub trait Coded: std::error::Error {
    /// The stable code under which a user can look this error up.
    fn code(&self) -> ErrorCode;

    /// What to do next, where this instance knows better than [`ErrorCode::next`].
    fn next(&self) -> Option<String> {
        None
    }
}

macro_rules! error_codes {
    ($($name:ident $code:literal $exit:ident: $meaning:literal; $next:literal;)*) => {
        /// A stable error code.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorCode { $(#[doc = concat!("`", $code, "`\n\n```text\n", $meaning, "\n```")] $name,)* }

        impl ErrorCode {
            /// Every code, in the order of the registry.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$name,)*];

            /// The stable text, such as `vls.no_answer`.
            #[must_use]
            pub const fn as_str(self) -> &'static str { match self { $(ErrorCode::$name => $code,)* } }

            /// The exit status of a program that ends with it.
            #[must_use]
            pub const fn exit(self) -> Exit { match self { $(ErrorCode::$name => Exit::$exit,)* } }

            /// What it means, in a sentence or two.
            #[must_use]
            pub const fn meaning(self) -> &'static str { match self { $(ErrorCode::$name => $meaning,)* } }

            /// What to do next.
            #[must_use]
            pub const fn next(self) -> &'static str { match self { $(ErrorCode::$name => $next,)* } }
        }
    };
}

error_codes! {
    // ---- the command line and its configuration
    CliUsage "cli.usage" Usage:
        "The command line is not one that this program understands.";
        "Run the command with --help.";
    CliUnknownCode "cli.unknown_code" NotFound:
        "There is no error with this code.";
        "`vat help` without a code lists them all.";
    CliOutput "cli.output" Failed:
        "The program could not write its own output.";
        "Check where standard output leads: a closed pipe, a full disk.";
    ConfigInvalid "config.invalid" Usage:
        "The configuration file cannot be used: it is not TOML, or has a key or a value that is not known.";
        "Correct the line that the message names, or remove it to get the default.";
    HomeUnusable "home.unusable" Failed:
        "The home folder, which holds this user's vats, cannot be created, read or written.";
        "Check its owner and mode, or name another with --home DIR or VAT_HOME.";
    HomeMode "home.mode" Denied:
        "The home folder can be entered by other users of this machine.";
        "chmod 700 the folder that the message names.";
    // ---- own vats, by name
    VatNotFound "vat.not_found" NotFound:
        "There is no vat, and no address book entry, of this name here.";
        "`vat list` shows what there is; `vat new NAME --object KIND` makes one.";
    VatExists "vat.exists" Conflict:
        "A vat or an address book entry of this name is already here.";
        "Choose another name; nothing was changed.";
    VatNameInvalid "vat.name_invalid" Usage:
        "A name is 1 to 40 letters, digits, `-`, `_` or `.`, and begins with a letter or a digit.";
        "Choose a name of that form.";
    VatRunning "vat.running" Conflict:
        "The vat is awake already: another process holds its checkpoint.";
        "Talk to the running one, or end the process that the message names.";
    VatAsleep "vat.asleep" Unreachable:
        "The vat is here but no process runs it.";
        "Wake it with `vat run NAME`.";
    VatUnknownObject "vat.unknown_object" Usage:
        "This program has no object of this kind.";
        "The message names the kinds that it has. A vat of another kind is run by the program that made it.";
    VatRolledBack "vat.rolled_back" Conflict:
        "A location server holds this vat's own signed statement of a later turn than its checkpoint has: this folder is an older copy, or another copy is alive.";
        "Find the newer copy. Only if it is lost: `vat run NAME --take-over` goes on from here and gives up what the message names.";
    VatFenced "vat.fenced" Conflict:
        "A location server knows a higher epoch of this identity: it was started somewhere else since.";
        "Run only one copy. `vat run NAME --take-over` makes this the one.";
    VatPoisoned "vat.poisoned" Integrity:
        "The disk refused a write or a sync, so the vat stopped at once: nothing that was not durable was shown.";
        "Look for the disk's error in the system log, make room or replace it, then start the vat again.";
    VatStopping "vat.stopping" Unreachable:
        "The vat is going to sleep and takes no more calls.";
        "Call again once it is awake.";
    // ---- references
    RefMalformed "ref.malformed" Usage:
        "This is not a sturdyref: vat://<52 characters>#<58 characters>, with optional hints.";
        "Copy the whole reference again, from `vat` to its last character.";
    RefChecksum "ref.checksum" Usage:
        "A character of this sturdyref was changed, lost or swapped: its checksum does not fit.";
        "Copy it again. Nothing was sent anywhere.";
    RefDenied "ref.denied" Denied:
        "The vat does not know this reference: never granted, revoked, or expired.";
        "Ask whoever gave it to you for a new one.";
    RefIdMalformed "ref.id_malformed" Usage:
        "This is not the id of a vat: 52 characters of z-base-32 in their one canonical spelling.";
        "Copy the id again.";
    RefNoInput "ref.no_input" Usage:
        "A reference was to be read from standard input, and none came.";
        "Pipe it in, such as: `printf %s \"$REF\" | vat accept NAME -`.";
    RefNotFound "ref.not_found" NotFound:
        "The vat has no grant of this number.";
        "`vat grants NAME` lists them.";
    RefLimit "ref.limit" Limit:
        "The vat has as many grants as it keeps.";
        "Revoke some with `vat revoke NAME NUMBER`.";
    // ---- objects
    ObjectUnknownMethod "object.unknown_method" Usage:
        "The object has no method of this name.";
        "The message lists the methods that it has.";
    ObjectArgument "object.argument" Usage:
        "An argument is missing, unknown, or not of the type that the method takes.";
        "The message names the argument and the type.";
    ObjectNotFound "object.not_found" NotFound:
        "The object has nothing under this name.";
        "List what it has.";
    ObjectExists "object.exists" Conflict:
        "The object has something under this name already; nothing was changed.";
        "Choose another name, or take away what is there first.";
    ObjectGone "object.gone" NotFound:
        "A reference leads to an object that the vat does not have: it was removed when nothing led to it any more.";
        "Ask for it again where the reference came from.";
    ObjectLimit "object.limit" Limit:
        "The vat has as many objects as it keeps.";
        "Take away references to objects that are not needed; what nothing leads to is removed.";
    ObjectNoContainer "object.no_container" Usage:
        "A path leads through an object that holds no others.";
        "`vat call NAME` shows what an object is. Only a directory, or an object with `open` like it, has others below it.";
    ObjectOverflow "object.overflow" Limit:
        "The number would not fit its type; nothing was changed.";
        "Use smaller numbers.";
    ObjectTooLarge "object.too_large" Limit:
        "A value is larger than the object stores; nothing was changed.";
        "The message says how large it may be.";
    ObjectAnswerTooLarge "object.answer_too_large" Limit:
        "The object's answer is larger, or more deeply nested, than this program shows.";
        "Ask for less at once, if the method has a limit; or call it from a program of your own.";
    ObjectCallInTurn "object.call_in_turn" Failed:
        "The object made a call to another vat from within a turn, which may still be undone; the call was not made.";
        "Make the call after the turn: its author has to move it behind the closure.";
    ObjectFailed "object.failed" Failed:
        "The object's code failed; its turn was undone.";
        "If it happens again with the same call, report it to the object's author.";
    ObjectUnknownInterface "object.unknown_interface" NotFound:
        "The vat has no schema for this interface, so a call to it cannot be formed.";
        "Use a client that was built with the interface.";
    // ---- sessions
    SessionVersion "session.version" Version:
        "The peer speaks another version of the session protocol.";
        "Update the older of the two programs.";
    SessionProtocol "session.protocol" Integrity:
        "The peer sent something that is no part of the protocol; the session was ended.";
        "Update both programs; if it stays, the peer is broken or hostile.";
    SessionMessageTooLarge "session.message_too_large" Limit:
        "A message was announced that is larger than this side accepts; the session was ended before any of it was read.";
        "Send less in one call.";
    SessionClosed "session.closed" Unreachable:
        "The session ended before the answer came; whether the call was carried out is not known.";
        "Look at the state before you repeat the call.";
    SessionWrongPeer "session.wrong_peer" Integrity:
        "Whoever answers at this address did not prove to have the key of the id that was dialled.";
        "The address is outdated, or somebody stands in between; no call was sent.";
    SessionSuperseded "session.superseded" Conflict:
        "A newer start of the same identity has taken over the session.";
        "Nothing, if you restarted that vat.";
    SessionEvicted "session.evicted" Limit:
        "The session was idle for longer than any other when the peer needed room for a new one.";
        "Connect again when there is something to do.";
    SessionCrossed "session.crossed" Conflict:
        "Both sides dialled each other at the same moment; the other one of the two sessions is kept.";
        "Use that one: it is open already.";
    SessionLimit "session.limit" Limit:
        "The peer accepts no more sessions now.";
        "Try again later.";
    SessionTooManyCalls "session.too_many_calls" Limit:
        "More calls are under way between the two sides, or more bytes wait for one of them, than it accepts; this call was not carried out.";
        "Wait for some of the answers, then call again.";
    SessionTooManyBytes "session.too_many_bytes" Limit:
        "The calls that are under way are larger together than the peer accepts; this one was not carried out.";
        "Wait for some of the answers, then call again; large content belongs on a stream of its own.";
    SessionTooManyQuestions "session.too_many_questions" Limit:
        "More answers are kept open than the peer accepts; this call was not carried out.";
        "Let go of answers and of capabilities that are not needed any more.";
    SessionTooManyGivenUp "session.too_many_given_up" Limit:
        "One side gave up more calls before their answers than the other accepts; the session was ended.";
        "Connect again, and wait longer for answers.";
    SessionTooManySegments "session.too_many_segments" Limit:
        "A message in more pieces than this side accepts was announced; the session was ended before any of it was read.";
        "The other program builds its messages badly; tell its author.";
    SessionTooManyCapabilities "session.too_many_capabilities" Limit:
        "One message carried more capabilities than the peer accepts; the session was ended.";
        "Pass fewer capabilities in one call.";
    SessionTooManyExports "session.too_many_exports" Limit:
        "One side keeps more capabilities of the other than that allows; the answer that would have brought another was not given.";
        "Let go of capabilities that are not needed any more, then call again.";
    SessionTooManyImports "session.too_many_imports" Limit:
        "One side would have to keep more capabilities of the other than it accepts; the message that brought them was not taken.";
        "Have the other side let go of some, then call again.";
    SessionTooDeep "session.too_deep" Limit:
        "A call was made on the result of a call that was made on the result of another, and so on, further than the peer follows while none of them is answered; it was not carried out.";
        "Wait for one of the answers in between.";
    SessionTooComplex "session.too_complex" Limit:
        "A message nests deeper, or leads to more than it contains, than this side is willing to read; the session was ended.";
        "Send plainer data.";
    SessionSlowMessage "session.slow_message" Timeout:
        "A message was begun and not ended in time; the session was ended.";
        "Check the network between the two, or send less in one call.";
    SessionIdle "session.idle" Timeout:
        "Nothing was said for a long time, and neither side held anything of the other; the session was ended.";
        "Nothing; the next call connects again.";
    SessionUnanswered "session.unanswered" Timeout:
        "The peer did not answer in time; whether the call was carried out is not known.";
        "Look at the state before you repeat the call.";
    SessionUnsupported "session.unsupported" Failed:
        "One side asked for a part of the protocol that the other does not have: introductions of third parties, or tail calls.";
        "Use what both have: pass capabilities through, and wait for answers.";
    SessionStalled "session.stalled" Timeout:
        "The peer took nothing of what was sent to it for a long time; the session was ended.";
        "Check the peer and the network between; then connect again.";
    BulkUnavailable "bulk.unavailable" Failed:
        "Bulk content comes on a stream of its own, and this session has no other than the one for calls.";
        "Read it in parts, by calls; or connect over QUIC.";
    BulkSize "bulk.size" Limit:
        "The content is larger than this side accepts, or smaller than what was asked to be continued.";
        "Delete what came of it before, and fetch it whole.";
    BulkInterrupted "bulk.interrupted" Unreachable:
        "The content stopped before its end.";
        "Fetch it again: it goes on where it stopped.";
    BulkBusy "bulk.busy" Conflict:
        "Another process is fetching the same content into the same file.";
        "Wait until it is done, or name another file.";
    BulkDamaged "bulk.damaged" Integrity:
        "The content does not have the checksum that its source gave for it.";
        "Fetch it again, whole; if it stays, the source is broken.";
    // ---- the network below
    NetBind "net.bind" Conflict:
        "The address to listen on is in use, is not of this machine, or needs rights that this user lacks.";
        "Choose another with --listen, or port 0 for any free one.";
    NetUnreachable "net.unreachable" Unreachable:
        "Nothing answers at this address.";
        "Check that the other side runs, and that no firewall drops UDP to its port.";
    NetTimeout "net.timeout" Timeout:
        "No answer within the time limit.";
        "Try again; `vat call` waits longer with --timeout.";
    NetName "net.name" Unreachable:
        "The host name does not resolve.";
        "Check the spelling and the DNS of this machine.";
    NetTls "net.tls" Unreachable:
        "An HTTPS server has not proved its name to this machine, or speaks neither TLS 1.2 nor 1.3.";
        "Check the entry's host name and the server's certificate; SSL_CERT_FILE names further authorities to trust.";
    // ---- finding
    VlsNoAnswer "vls.no_answer" Unreachable:
        "No entry of the search path gave an answer.";
        "The message has one reason for each. `vat vls test ENTRY` tries one alone.";
    VlsUnknownVat "vls.unknown_vat" NotFound:
        "The location servers that answered have no record of this vat.";
        "Check the id, or ask the vat's owner which search path it registers with.";
    VlsEmptyPath "vls.empty_path" Unreachable:
        "The search path is empty and the vat is not on this machine.";
        "Add a location server: `vat vls add vls://<id>@<host>:<port>`.";
    VlsEntryMalformed "vls.entry_malformed" Usage:
        "This is not a search path entry: vls://<id>@<host>:<port>.";
        "Copy the line that the location server prints when it starts.";
    VlsEntryNotFound "vls.entry_not_found" NotFound:
        "The search path has no such entry.";
        "`vat vls list` shows them.";
    VlsEntryExists "vls.entry_exists" Conflict:
        "The search path has this entry already.";
        "Nothing to do.";
    VlsDormant "vls.dormant" Unreachable:
        "The vat's newest record says that it sleeps or has departed: it has no address now.";
        "Its owner wakes it with `vat run`.";
    VlsNoDial "vls.no_dial" Unreachable:
        "A record was found, but nobody at its addresses proved to be the vat.";
        "The message has one reason for each address. The vat may just be restarting.";
    VlsRefused "vls.refused" Failed:
        "A location server refused the registration.";
        "The message has its reason.";
    VlsQuota "vls.quota" Limit:
        "Too many registrations of new ids, or too many requests, from this network or for this id.";
        "Wait for the time that the message names.";
    VlsFull "vls.full" Limit:
        "The location server's table is full.";
        "Register with another one.";
    VlsWork "vls.work" Limit:
        "The location server is nearly full: a new vat has to show that its program has computed something for its place.";
        "A running vat does so by itself, within seconds. Programs that cannot have to use another server, or to try later.";
    VlsInvite "vls.invite" Denied:
        "The location server is closed: it takes a new vat only with an invite that its operator has made, and that holds.";
        "Ask its operator for an invite, then: vat vls add ENTRY --invite TEXT. Vats that it knows need none.";
    VlsInviteMalformed "vls.invite_malformed" Usage:
        "The text is not an invite, or was changed in copying.";
        "Copy it again: it is vlsinvite: and 32 characters.";
    VlsInviteNotFound "vls.invite_not_found" NotFound:
        "The server has no such invite: it was used up, revoked, or never made.";
        "`vls-server invite list` tells which there are.";
    VlsExpired "vls.expired" NotFound:
        "The vat has not renewed its record for longer than its lease: it is not known to be anywhere.";
        "Ask its owner whether it runs. The old record can be read with ?policy=CacheOnly.";
    VlsStale "vls.stale" Conflict:
        "The location server holds, or held, a record of this vat that is higher than the one offered.";
        "Read the current record. If another copy of the vat runs, end one of them.";
    VlsConflict "vls.conflict" Conflict:
        "The location server holds a record of the same epoch and time with other contents: two copies of the vat have signed.";
        "End one of the copies; the other registers again.";
    VlsUnexpected "vls.unexpected" Conflict:
        "The current record is not the one that the writer expected.";
        "Read the current record, decide again, and write with its ETag.";
    HttpRequest "http.request" Usage:
        "The HTTP request is not one that a location server answers.";
        "The message says what is wrong. The page at / tells what can be asked.";
    ServerCertificate "server.certificate" Failed:
        "The certificate or the key for HTTPS cannot be read, or they do not belong together.";
        "Both are PEM files: the certificate with its chain, and its private key.";
    ServerRunning "server.running" Conflict:
        "Another process serves from this data folder: it holds the location server's records.";
        "Use the server that runs, or end the process that the message names.";
    ServerNotRunning "server.not_running" Unreachable:
        "No location server serves from this data folder, or it belongs to another user.";
        "Start it with `vls-server run`, as the user that you ask as; or name another folder with --data.";
    ServerPortBlocked "server.port_blocked" Unreachable:
        "Another machine tried this port of the location server, and nobody answered: a firewall or a router keeps others out.";
        "Let the port that the message names through, and forward it if a router stands between.";
    ServerClockSkew "server.clock_skew" Failed:
        "The clock of this machine and that of another location server differ so much that records are refused, or leases end at the wrong time.";
        "Have the system set its clock: `timedatectl set-ntp true`, or chrony.";
    ServerFileLimit "server.file_limit" Limit:
        "The process may not open as many files as its connections need.";
        "LimitNOFILE= in the systemd unit, or `ulimit -n` in the shell that starts it.";
    ServerExportInvalid "server.export_invalid" Integrity:
        "This is not a file that `vls-server export` wrote, or it was damaged.";
        "What stood before the line that the message names was imported. Importing the whole file again does no harm.";
    ServerStopping "server.stopping" Unreachable:
        "The location server is stopping. Whether it stored the registration is not known; a bit-identical one is safe to repeat.";
        "Ask again in a moment, or another entry of the search path.";
    VlsNoCarrier "vls.no_carrier" Unreachable:
        "This build cannot use the form of the search path entry or of the address, or not for registrations.";
        "Add an entry of the form vls://<id>@<host>:<port> or https://<host>.";
    VlsClockSkew "vls.clock_skew" Degraded:
        "Several location servers agree with each other on the time, and this machine's clock differs by more than a minute.";
        "Set this machine's clock, best by NTP: records that are dated five minutes ahead are refused.";
    VlsLeftOut "vls.left_out" Denied:
        "Local-only mode: this is not on this machine or in its own network, so it is neither asked nor dialled.";
        "Leave --local-only away, or take `local_only` out of the configuration.";
    // ---- location records
    RecordMalformed "record.malformed" Integrity:
        "The bytes are not a location record.";
        "Update the program that made it.";
    RecordForged "record.forged" Integrity:
        "The record was not signed by the vat that it is about, or was altered since.";
        "Whoever gave it out is broken or lies; it was not used.";
    RecordExpired "record.expired" Integrity:
        "The record's own end of validity has passed.";
        "The vat renews it when it is awake.";
    RecordFuture "record.future" Integrity:
        "The record is dated more than five minutes ahead of this clock.";
        "Set the clock of the vat's machine, or of this one.";
    RecordStale "record.stale" Conflict:
        "A higher record of this vat is known: a later epoch, or a later time in the same epoch.";
        "Only a copy that was left behind sends such a record.";
    RecordLowerEpoch "record.lower_epoch" Conflict:
        "The record is of an earlier epoch than one that is known: the identity was started again since, and whoever shows this one was left behind.";
        "Find the copy that still signs in the earlier epoch, and end it.";
    RecordConflict "record.conflict" Integrity:
        "Two different records of the same vat carry the same epoch and time: two copies of it have signed.";
        "Find the second copy and end it.";
    RecordUnexpected "record.unexpected" Conflict:
        "The current record is not the one that the writer expected: somebody else was first.";
        "Read it again and decide anew.";
    RecordTooLarge "record.too_large" Limit:
        "The record does not fit the size that every carrier accepts.";
        "Advertise fewer addresses or search path entries.";
    RecordVersion "record.version" Version:
        "The record is written in a format that this program does not know.";
        "Update this program.";
    RecordNoVat "record.no_vat" NotFound:
        "This key has published something with pkarr, iroh or another program, and nothing about a vat.";
        "Ask whoever gave you the address: the vat was never registered there, or the address is no vat's.";
    // ---- checkpoints and keys
    CheckpointDamaged "checkpoint.damaged" Integrity:
        "A stored frame is not what was written: the disk, or somebody, changed it.";
        "Nothing was changed. Restore from a backup; keep the damaged folder.";
    CheckpointMissing "checkpoint.missing" NotFound:
        "A file that the checkpoint needs is not there.";
        "Restore the folder from a backup.";
    CheckpointVersion "checkpoint.version" Version:
        "The checkpoint was written by a newer program.";
        "Update this program.";
    CheckpointWrongVat "checkpoint.wrong_vat" Integrity:
        "The stored frames belong to another vat or another store.";
        "Put every folder back where it was.";
    ImageInvalid "image.invalid" Integrity:
        "The file is not an image of a vat, or was damaged so badly that it is none any more.";
        "Check that this is the file that `vat export` or `vat backup` wrote.";
    ImageExists "image.exists" Conflict:
        "There is a file of that name already. It was left alone.";
        "Choose another name, or move the file away.";
    CheckpointDiskFull "checkpoint.disk_full" Limit:
        "The disk is full. Nothing that was acknowledged is lost, and nothing that is not durable was shown.";
        "Make room, then start the vat again.";
    CheckpointDisk "checkpoint.disk" Failed:
        "The operating system refused to read or write the checkpoint.";
        "The message has the file and the system's reason.";
    CheckpointTooLarge "checkpoint.too_large" Limit:
        "One turn changed more than one frame can hold; it was undone.";
        "Change less in one turn.";
    CheckpointOutgrown "checkpoint.outgrown" Limit:
        "The state of a vat became larger than one file for short-lived processes may be.";
        "Export the vat and import it on a host where it can stay awake.";
    KeyMissing "key.missing" NotFound:
        "The key file that unlocks the checkpoint is not there.";
        "Put it back from a backup, or use `vat key recover NAME` if something else opens the checkpoint too.";
    KeyMode "key.mode" Denied:
        "The key file can be read by others, or belongs to another user; it was not used.";
        "chmod 600 the file that the message names, and consider whether it was read.";
    KeyUnreadable "key.unreadable" Denied:
        "The key file is there, and this user may not read it.";
        "Start the program as the user that the file belongs to.";
    KeyWrong "key.wrong" Integrity:
        "This key does not unlock this checkpoint.";
        "Put the key file that belongs to it in its place.";
    KeyPassphrase "key.passphrase" Usage:
        "The passphrase is too short, or far too long.";
        "Take several random words: whoever has the files can try passphrases without end.";
    KeyRecipient "key.recipient" Usage:
        "This is no recipient: vatkey: and 58 characters, as `vat key recipient` prints them.";
        "Copy the whole recipient again.";
    KeyUnknownSlot "key.unknown_slot" NotFound:
        "The checkpoint has no keyslot of this id.";
        "`vat key show NAME` lists them.";
    KeyInUse "key.in_use" Denied:
        "This keyslot belongs to the key that the command itself unlocks the checkpoint with; it was kept.";
        "Use `vat key rotate NAME` to replace the vat's own key.";
    KeyBusy "key.busy" Conflict:
        "Another process is changing the keys of this checkpoint right now.";
        "Try again when it is done.";
    KeyTooMany "key.too_many" Limit:
        "The checkpoint has as many keyslots as it can have.";
        "Remove one that is not needed any more with `vat key remove NAME SLOT`.";
    // ---- anything else
    SystemRandom "system.random" Failed:
        "The operating system gave no random numbers.";
        "Start the program where getrandom(2) works.";
    SystemIo "system.io" Failed:
        "The operating system refused an operation.";
        "The message has the file and the system's reason.";
    Internal "internal" Failed:
        "The program broke one of its own rules. Nothing that was acknowledged is lost.";
        "Please report it with the message.";
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// There is no code of this text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is no error code of this name")]
pub struct UnknownErrorCode;

impl Coded for UnknownErrorCode {
    fn code(&self) -> ErrorCode {
        ErrorCode::CliUnknownCode
    }
}

impl FromStr for ErrorCode {
    type Err = UnknownErrorCode;

    fn from_str(text: &str) -> Result<Self, UnknownErrorCode> {
        Self::ALL.iter().copied().find(|code| code.as_str() == text).ok_or(UnknownErrorCode)
    }
}

impl ErrorCode {
    /// The text of a Cap'n Proto exception that carries this code: `code: message`.
    #[must_use]
    pub fn to_wire(self, message: &str) -> String {
        format!("{self}: {message}")
    }
}

/// An error that a peer reported, with its code if it named one that we know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RemoteError {
    /// The peer's code.
    pub code: ErrorCode,
    /// What the peer said, without the code.
    pub message: String,
}

impl RemoteError {
    /// Reads the text of a Cap'n Proto exception. Implementations put words of their own in front
    /// (`remote exception: `), so the code is looked for at the beginning of each `: `-separated part, and the
    /// first one counts. `None` if there is no code that this version knows.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut rest = text;
        loop {
            let (word, message) = rest.split_once(": ")?;
            if let Ok(code) = word.trim_start().parse() {
                return Some(Self { code, message: message.to_owned() });
            }
            rest = message;
        }
    }
}

impl Coded for RemoteError {
    fn code(&self) -> ErrorCode {
        self.code
    }
}
