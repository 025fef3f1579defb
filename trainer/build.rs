//! Compiles what tch lacks, and lets the binary find the libtorch that it was linked against without LD_LIBRARY_PATH.

fn main() -> Result<(), std::env::VarError> {
    println!("cargo:rerun-if-changed=src/learner/shim.cpp");
    // torch-sys tells where it found libtorch.
    let libraries = std::env::var("DEP_TCH_LIBTORCH_LIB")?;
    println!("cargo:rustc-link-arg=-Wl,-rpath,{libraries}");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        // Not `-I`: what the compiler has to say of libtorch's headers is nobody's business here.
        .flag("-isystem")
        .flag(format!("{libraries}/../include"))
        .file("src/learner/shim.cpp")
        .compile("parl_shim");
    println!("cargo:rustc-link-lib=c10");
    Ok(())
}
