"""Count primes by a segmented sieve, and check the count against the known one."""

from pathlib import Path

from witness import result, witnessed

KNOWN = {100_000_000: 5_761_455, 200_000_000: 11_078_937}
SEGMENT = 400_000


def small_primes(limit: int) -> list[int]:
    sieve = bytearray([1]) * (limit + 1)
    for number in range(2, int(limit**0.5) + 1):
        if sieve[number]:
            sieve[number * number :: number] = bytes(len(range(number * number, limit + 1, number)))
    return [number for number in range(2, limit + 1) if sieve[number]]


def count_in_segment(low: int, high: int, primes: list[int]) -> int:
    sieve = bytearray([1]) * (high - low)
    for prime in primes:
        first = max(prime * prime, -(-low // prime) * prime) - low
        if first < high - low:
            sieve[first::prime] = bytes(len(range(first, high - low, prime)))
    return sum(sieve)


def count_primes(limit_text: str) -> int:
    limit = int(limit_text)
    primes = small_primes(int(limit**0.5) + 1)
    count = 0
    with Path("counts.csv").open("w") as file:
        for low in range(2, limit, SEGMENT):
            count += count_in_segment(low, min(low + SEGMENT, limit), primes)
            file.write(f"{low},{count}\n")
    if count != KNOWN[limit]:
        return 1
    result(f"{count:,} primes below {limit:,}, as it must be")
    return 0


witnessed(count_primes)
