//! Whether the machine is a virtual one, as systemd tells. Asked once: the answer does not change, and asking starts a program.

use std::{process::Stdio, time::Duration};

use tokio::process::Command;

const PROGRAM: &str = "systemd-detect-virt";
const LIMIT: Duration = Duration::from_secs(5);

/// `yes`, `no`, or `unknown` where systemd does not say.
pub(super) async fn detect() -> &'static str {
    detect_with(PROGRAM, LIMIT).await
}

async fn detect_with(program: &str, limit: Duration) -> &'static str {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(limit, command.status()).await {
        Ok(Ok(status)) if status.success() => "yes",
        Ok(Ok(_)) => "no",
        Ok(Err(_)) | Err(_) => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_exit_code_tells() {
        assert_eq!(detect_with("true", LIMIT).await, "yes");
        assert_eq!(detect_with("false", LIMIT).await, "no");
        assert_eq!(detect_with("/no/such/program", LIMIT).await, "unknown");
        // `yes` does not end by itself.
        assert_eq!(detect_with("yes", Duration::from_millis(10)).await, "unknown");
    }
}
