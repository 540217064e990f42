//! Local sockets: who may connect, which file is whose, and sessions over them.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, net::UnixListener as BlockingListener, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Barrier},
};

use schemas::{Coded, ErrorCode};
use transport::{LocalError, LocalListener, Session, SessionEnd, SessionError, SessionLimits, dial_local};

use crate::{
    raw::announce,
    support::{add, new_counter, options, restored, run, serving, vat},
};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

async fn sessions_at(path: &Path) -> (Session, Session, LocalListener) {
    let listener = LocalListener::bind(path).unwrap();
    let accept = async { Session::accept_local(listener.accept().await.unwrap(), serving(vat(new_counter()))).await };
    let (dialling, accepting) = tokio::try_join!(Session::open_local(path, options()), accept).unwrap();
    (dialling, accepting, listener)
}

#[test]
fn calls_and_pipelining_work_and_no_id_is_claimed() {
    run(async {
        let folder = folder();
        let (dialling, accepting, _listener) = sessions_at(&folder.path().join("socket")).await;
        assert_eq!((dialling.peer().id, accepting.peer().id), (None, None));
        assert_eq!(add(&restored(&dialling.bootstrap()), 5).await.unwrap(), 5);
        dialling.close();
        assert!(matches!(accepting.closed().await, SessionEnd::Peer(_)));
    });
}

#[test]
fn a_violation_is_told_on_the_stream_itself() {
    run(async {
        let folder = folder();
        let path = folder.path().join("socket");
        let listener = LocalListener::bind(&path).unwrap();
        let mut small = SessionLimits::default();
        small.message_bytes = 1_000;
        let mut accepting = serving(new_counter());
        accepting.limits = small;
        let accept = async { Session::accept_local(listener.accept().await.unwrap(), accepting).await };
        let (dialling, accepting) = tokio::try_join!(Session::open_local(&path, options()), accept).unwrap();
        let notes: schemas::objects_capnp::notes::Client = dialling.bootstrap();
        let mut request = notes.put_request();
        request.get().set_text("x".repeat(2_000));
        let error = request.send().promise.await.err().unwrap();
        assert_eq!(schemas::RemoteError::parse(&error.extra).unwrap().code, ErrorCode::SessionMessageTooLarge);
        assert_eq!(accepting.closed().await.code(), ErrorCode::SessionMessageTooLarge);
        assert_eq!(dialling.closed().await.code(), ErrorCode::SessionMessageTooLarge);
    });
}

#[test]
fn garbage_on_a_local_socket_is_refused() {
    run(async {
        let folder = folder();
        let path = folder.path().join("socket");
        let listener = LocalListener::bind(&path).unwrap();
        let mut stray = tokio::net::UnixStream::connect(&path).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stray, &announce(3)).await.unwrap();
        let error = Session::accept_local(listener.accept().await.unwrap(), options()).await.unwrap_err();
        assert!(matches!(error, SessionError::Hello(_)), "{error}");
        assert_eq!(error.code(), ErrorCode::SessionVersion);
    });
}

#[test]
fn the_file_is_for_its_owner_alone_and_goes_with_the_listener() {
    run(async {
        let folder = folder();
        let path = folder.path().join("socket");
        let listener = LocalListener::bind(&path).unwrap();
        assert_eq!(listener.path(), path);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        drop(listener);
        assert!(!path.exists());
    });
}

#[test]
fn a_second_listener_is_refused_and_the_first_goes_on() {
    run(async {
        let folder = folder();
        let path = folder.path().join("socket");
        let listener = LocalListener::bind(&path).unwrap();
        let error = LocalListener::bind(&path).unwrap_err();
        assert!(matches!(error, LocalError::InUse { .. }), "{error}");
        assert_eq!(error.code(), ErrorCode::NetBind);
        let (dialled, accepted) = tokio::join!(dial_local(&path), listener.accept());
        assert!(dialled.is_ok() && accepted.is_ok());
    });
}

#[test]
fn the_file_of_a_dead_process_is_replaced() {
    run(async {
        let folder = folder();
        let path = folder.path().join("socket");
        drop(BlockingListener::bind(&path).unwrap());
        assert!(path.exists(), "a listener that is killed leaves its file");
        let error = dial_local(&path).await.unwrap_err();
        assert!(matches!(error, LocalError::Nobody { .. }), "{error}");
        let (dialling, _accepting, _listener) = sessions_at(&path).await;
        assert_eq!(add(&restored(&dialling.bootstrap()), 1).await.unwrap(), 1);
    });
}

#[test]
fn what_is_no_socket_is_not_touched() {
    run(async {
        let folder = folder();
        let path = folder.path().join("precious");
        fs::write(&path, "content").unwrap();
        let error = LocalListener::bind(&path).unwrap_err();
        assert!(matches!(error, LocalError::NotASocket { .. }), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "content");
    });
}

#[test]
fn a_listener_removes_no_file_but_its_own() {
    run(async {
        let folder = folder();
        let path = folder.path().join("socket");
        let first = LocalListener::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _second = LocalListener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists(), "the second one's file");
    });
}

#[test]
fn a_path_longer_than_a_socket_address_works() {
    run(async {
        let folder = folder();
        let mut deep = folder.path().to_owned();
        for _ in 0..6 {
            deep.push("a-folder-with-a-rather-long-name-of-forty-one");
        }
        fs::create_dir_all(&deep).unwrap();
        let path = deep.join("socket");
        assert!(path.as_os_str().len() > 250);
        let (dialling, _accepting, _listener) = sessions_at(&path).await;
        assert_eq!(add(&restored(&dialling.bootstrap()), 1).await.unwrap(), 1);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    });
}

#[test]
fn where_nobody_listens_is_told_apart_from_what_cannot_be() {
    run(async {
        let folder = folder();
        for path in ["absent", "no/such/folder/socket"] {
            let error = dial_local(&folder.path().join(path)).await.unwrap_err();
            assert!(matches!(error, LocalError::Nobody { .. }), "{error}");
            assert_eq!(error.code(), ErrorCode::NetUnreachable);
        }
        assert!(matches!(dial_local(Path::new("/")).await.unwrap_err(), LocalError::Name { .. }));
        assert!(LocalListener::bind(&folder.path().join("no/such/folder/socket")).is_err());
    });
}

#[test]
fn of_many_that_replace_a_dead_file_at_once_one_wins() {
    let folder = folder();
    let path = folder.path().join("socket");
    for _ in 0..20 {
        drop(BlockingListener::bind(&path).unwrap());
        let barrier = Arc::new(Barrier::new(4));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (barrier, path) = (barrier.clone(), path.clone());
                std::thread::spawn(move || {
                    run(async {
                        barrier.wait();
                        let listener = LocalListener::bind(&path);
                        // The winner stays until everyone has tried.
                        barrier.wait();
                        listener.is_ok()
                    })
                })
            })
            .collect();
        let winners = threads.into_iter().map(|thread| thread.join().unwrap()).filter(|won| *won);
        assert_eq!(winners.count(), 1);
        assert!(!path.exists());
    }
}

// ---- other users. Only root can become one, so these do nothing for others; continuous integration is root.

const OTHER_USER: u32 = 65534;
const PLAYS: &str = "TRANSPORT_TEST_OTHER_USER_PLAYS";
const AT: &str = "TRANSPORT_TEST_OTHER_USER_AT";

/// Not a test by itself: what the process of the other user does.
#[test]
fn other_user() {
    let (Ok(role), Ok(path)) = (std::env::var(PLAYS), std::env::var(AT)) else { return };
    run(async {
        match role.as_str() {
            "listener" => {
                let listener = LocalListener::bind(Path::new(&path)).unwrap();
                println!("\nready");
                // Stays until the parent closes our standard input.
                std::io::read_to_string(std::io::stdin()).unwrap();
                drop(listener);
            }
            "dialler" => {
                let error = Session::open_local(Path::new(&path), options()).await.unwrap_err();
                println!("\nerror {}", error.code());
            }
            other => panic!("{other}"),
        }
    });
}

/// Starts this program as another user, in a role. `None` if this user cannot.
fn as_other_user(role: &str, path: &Path) -> Option<(std::process::Child, tempfile::TempDir)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    // Where the other user may read it.
    let folder = folder();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program: PathBuf = folder.path().join("program");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let child = Command::new(program)
        .args(["--exact", "local_sockets::other_user", "--nocapture"])
        .env(PLAYS, role)
        .env(AT, path)
        .current_dir("/")
        .uid(OTHER_USER)
        .gid(OTHER_USER)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    Some((child, folder))
}

#[test]
fn a_socket_of_another_user_is_not_talked_to() {
    let folder = folder();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let path = folder.path().join("socket");
    let Some((mut child, _program)) = as_other_user("listener", &path) else { return };
    let output = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut lines = std::io::BufRead::lines(output);
    assert!(lines.any(|line| line.unwrap() == "ready"));
    run(async {
        let error = dial_local(&path).await.unwrap_err();
        let LocalError::OtherUser { found, expected, .. } = &error else { panic!("{error}") };
        assert_eq!((*found, *expected), (OTHER_USER, 0));
        assert_eq!(error.code(), ErrorCode::SessionWrongPeer);
        // Who knows whose it is, and means it, talks to that user.
        assert!(transport::dial_local_of(&path, OTHER_USER).await.is_ok());
        assert!(transport::dial_local_of(&path, OTHER_USER + 1).await.is_err());
    });
    drop(child.stdin.take());
    lines.for_each(drop);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_process_of_another_user_is_not_listened_to_whatever_the_mode_of_the_file() {
    let folder = folder();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let path = folder.path().join("socket");
    let output = run(async {
        let listener = LocalListener::bind(&path).unwrap();
        // The kernel alone would keep the other user out; here somebody has loosened the mode.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        let (child, _program) = as_other_user("dialler", &path)?;
        let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
        tokio::select! {
            accepted = listener.accept() => panic!("accepted: {accepted:?}"),
            output = output => Some(output.unwrap()),
        }
    });
    let Some(output) = output else { return };
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    // It sees that the socket is not its own; it would be hung up on anyway.
    assert!(text.contains("error session.wrong_peer"), "{text}");
}
