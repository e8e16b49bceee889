//! The same servers with another allocator.

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> tower_comet_bench::Result<()> {
    tower_comet_bench::server::main(std::env::args().skip(2))
}
