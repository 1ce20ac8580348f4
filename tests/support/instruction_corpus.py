"""What small and middle-sized instruct models write when they are asked for requests, with what is usable in it.

Written for these tests, in the manner of real answers. ITEMS are single items of a list: (chunk, item, the request that
should come of it or None, the reason to leave it out or None). ANSWERS are whole answers.
"""

CLOCK = (
    "In the winter of 1984 the old clock by the harbour stopped. Marta Bell, the sailor's daughter, repaired it with "
    "a spring that she had taken from her father's watch. She told nobody, and for eleven years the village believed "
    "that the clock had healed itself. When the boat left for Lisbon, the captain wept. “Who goes there?” cried the "
    "guard. The passage of the Harbour Act in 1995 brought the truth to light: the council had asked for receipts."
)
CODE = (
    "def check(x, y):\n    # returns True when x differs from y\n    return x != y and not isinstance(x, Missing)\n\n"
    "class Missing(Exception):\n    pass\n\nThe function check is called once per row. 3x + 2 = 11 has one solution."
)
CHINESE = (
    "一九八四年冬天，港口的旧钟停了。水手的女儿用父亲怀表里的弹簧修好了它。她没有告诉任何人，村里人以为钟自己好了。"
)
JAPANESE = "一九八四年の冬、港の古い時計が止まった。船乗りの娘が父の懐中時計のばねで直した。彼女は誰にも言わなかった。"
RUSSIAN = "Зимой 1984 года старые часы у гавани остановились. Их починила Марта, дочь моряка. Она никому не сказала."
SPANISH = "En el invierno de 1984 el viejo reloj del puerto se paró. Lo reparó Marta, la hija del marinero."
GERMAN = "Im Winter 1984 blieb die alte Uhr am Hafen stehen. Marta, die Tochter des Seemanns, reparierte sie heimlich."
FRENCH = "Pendant l'hiver 1984, la vieille horloge du port s'arrêta. Marta, la fille du marin, la répara en secret."

PARAGRAPH = (
    "The story of the old clock shows how a small village by the sea deals with change, and how one person can do "
    "something good without telling anybody about it, while everybody else prefers to believe in a miracle; it also "
    "shows what happens when an authority asks for receipts many years later, so that the truth comes out although "
    "nobody was really looking for it, and it makes the reader think about gratitude, about memory, about the relation "
    "between a daughter and her father, and about the question of whether a good deed needs a witness at all, today."
)

Item = tuple[str, str, str | None, str | None]


def good(chunk: str, *items: str) -> list[Item]:
    return [(chunk, item, item, None) for item in items]


def becomes(chunk: str, request: str, *items: str) -> list[Item]:
    return [(chunk, item, request, None) for item in items]


def bad(reason: str, chunk: str, *items: str) -> list[Item]:
    return [(chunk, item, None, reason) for item in items]


ITEMS: list[Item] = [
    *good(
        CLOCK,
        "Who repaired the old clock by the harbour, and with what?",
        "Summarize the events that led to the repair of the clock.",
        "Summarise.",
        "Compare the guard with the captain.",
        "List the people who appear and what each of them did.",
        "What happened in 1984?",
        "Why 1995?",
        "What does “for eleven years the village believed that the clock had healed itself” say about the village?",
        "Explain the sentence “She told nobody, and for eleven years the village believed that the clock had healed "
        "itself.”",
        "In two sentences, retell how the clock was repaired.",
        "As a member of the council, write a letter to Marta Bell that asks for receipts.",
        "You are a journalist. Write a headline about the repaired clock.",
        "Why did the passage of the Harbour Act matter to Marta Bell?",
        "According to the document, who believed that the clock had healed itself?",
        "What does the text say about Marta's father?",
        "Describe the author's attitude towards the council.",
        "Imagine that Marta had told everybody. How would the village have reacted?",
        "I would like to know what became of the watch.",
        "Marta kept her secret for eleven years. Why?",
        "How are gratitude and silence connected in the story of the clock?",
        "Which is worse for the village: a stopped clock or an unpaid bill?",
        "Who goes there?",
        "To what extent did the council act fairly towards Marta Bell?",
        "Rewrite the scene in which the boat leaves for Lisbon from the captain's point of view.",
        "Make a timeline of the events between 1984 and 1995.",
        "What is the name of the sailor's daughter",
        "where did the boat go",
        "Sum up the story of the clock in one paragraph.",
        "Give three reasons why Marta told nobody. Use quotations.",
        "If the council had not asked for receipts, would the truth have come to light?",
        "Translate the guard's question into French.",
        "Was it Marta or her father who repaired the clock?",
        "Discuss: a good deed needs no witness.",
        "Which of the following is true of Marta? a) She was a guard. b) She was a sailor's daughter.",
        "What role does the Northwest Passage play in the captain's plans?",
        "Define “receipt” as the council understands it.",
    ),
    *good(
        CODE,
        "What does check(3, 3) return?",
        "Why does `check` use `!=` and not `is not`?",
        "What is the type of Missing()?",
        "{'a': 1}['a'] has which value?",
        "[1, 2, 3][::-1] gives what?",
        "Solve 3x + 2 = 11 for x.",
        "Refactor check so that it needs no isinstance call.",
        "x != y: when is this false although x and y differ?",
        "Write a unit test for `check(x, y)` with x = Missing().",
        "Is 3x + 2 = 11 linear?",
        "Implement `class Missing` as a singleton and explain the difference.",
    ),
    *good(
        CHINESE,
        "谁修好了那座旧钟",
        "她为什么没有告诉任何人",
        "比较船长和卫兵的态度。",
        "请用三句话概括旧钟的故事。",
        "总结全文",
        "文中的女儿是怎样修好旧钟的？",
        "列出故事中的人物及其作用",
        "“村里人以为钟自己好了”这句话说明了什么？",
    ),
    *good(
        JAPANESE,
        "誰が古い時計を直しましたか。",
        "娘が時計を直した方法を説明してください。",
        "この文章の要点をまとめなさい。",
        "時計と懐中時計の違いを述べよ。",
    ),
    *good(RUSSIAN, "Кто починил старые часы?", "Объясните, почему Марта никому не сказала.", "Сравни Марту и её отца."),
    *good(SPANISH, "¿Quién reparó el viejo reloj del puerto?", "Explica por qué Marta guardó silencio.", "Resume."),
    *good(
        GERMAN, "Wer reparierte die alte Uhr?", "Beschreiben Sie, wie Marta vorging.", "Fasse die Geschichte zusammen."
    ),
    *good(
        FRENCH,
        "Qui répara la vieille horloge ?",
        "Expliquez pourquoi Marta garda le secret.",
        "Compare les deux lettres.",
    ),
    *good(
        CLOCK,
        "누가 시계를 고쳤습니까?",
        "마르타의 행동을 요약하세요.",
        "من أصلح الساعة القديمة؟",
        "اشرح سبب صمت مارتا.",
    ),
    *good(CLOCK, "Chi riparò il vecchio orologio?", "Quem consertou o relógio?", "Descreva a reação da aldeia."),
    # Frames, answers and titles around a request.
    *becomes(
        CLOCK,
        "Who repaired the clock?",
        'One request is: "Who repaired the clock?"',
        'A third request is: "Who repaired the clock?"',
        "Another question could be: Who repaired the clock?",
        "The second question: “Who repaired the clock?”",
        'A final request that a careful reader could make is: "Who repaired the clock?"',
        "A careful reader could ask: Who repaired the clock?",
        "Request number two: Who repaired the clock?",
        "Question about details: Who repaired the clock?",
        "Detail: Who repaired the clock?",
        "Questions about details - Who repaired the clock?",
        "Reasons and connections – Who repaired the clock?",
        "(Detail) Who repaired the clock?",
        "[Factual question] Who repaired the clock?",
        "Who repaired the clock? (detail question)",
        "Summing up: Who repaired the clock?",
        "**Factual:** Who repaired the clock?",
        "Who repaired the clock? Marta Bell repaired it.",
        "Who repaired the clock? Marta Bell.",
        "Who repaired the clock? (Answer: Marta Bell)",
        "Who repaired the clock? (Marta Bell)",
        '"Who repaired the clock?" The sailor\'s daughter did, in 1984.',
        "Who repaired the clock? - It was Marta.",
        'Another request: "Who repaired the clock?".',
    ),
    *becomes(CLOCK, "Compare the guard and the captain.", "A second request is to compare the guard and the captain."),
    *becomes(CLOCK, "Why did she tell nobody? Explain.", "Reason: Why did she tell nobody? Explain."),
    *becomes(
        CHINESE,
        "谁修好了旧钟？",
        "第一个问题是：谁修好了旧钟？",
        "另一个请求：“谁修好了旧钟？”",
        "谁修好了旧钟？水手的女儿。",
    ),
    *becomes(SPANISH, "¿Quién reparó el reloj?", "La primera pregunta es: ¿Quién reparó el reloj?"),
    *becomes(GERMAN, "Wer reparierte die Uhr?", "Die zweite Frage lautet: Wer reparierte die Uhr?"),
    *becomes(FRENCH, "Qui répara l'horloge ?", "Une autre question est : Qui répara l'horloge ?"),
    *becomes(RUSSIAN, "Кто починил часы?", "Первый вопрос: Кто починил часы?", "Кто починил часы? Их починила Марта."),
    *becomes(JAPANESE, "誰が時計を直しましたか？", "最初の質問は：誰が時計を直しましたか？"),
    # No request.
    *bad("no_letters", CLOCK, "1.1", "1984", "1. 2. 3.", "…", "???", "2 + 2 = 4"),
    *bad("too_short", CLOCK, "Why?", "Clock", "钟"),
    *bad("too_long", CLOCK, PARAGRAPH, f"Explain this: {PARAGRAPH}"),
    *bad(
        "prompt_echo",
        CLOCK,
        "This is a list of requests that a careful reader could make about this passage.",
        "Each one must be answerable from the passage alone.",
        "Think of 4 different requests that a careful reader could make.",
        "Name the people, things or ideas it is about.",
        "Mix questions about details, about reasons and connections.",
        "It must make sense to someone who holds a much longer text that contains the passage",
        "Write them as a numbered list, one request per line.",
        "Tasks such as summing up or comparing",
    ),
    *bad(
        "copy",
        CLOCK,
        "She told nobody, and for eleven years the village believed that the clock had healed itself.",
        "the old clock by the harbour",
        "When the boat left for Lisbon, the captain wept.",
        "Marta Bell, the sailor's daughter",
        "a spring that she had taken from her father's watch",
    ),
    *bad("copy", CHINESE, "水手的女儿用父亲怀表里的弹簧修好了它。", "港口的旧钟停了"),
    *bad("copy", RUSSIAN, "Их починила Марта, дочь моряка."),
    *bad("copy", GERMAN, "Marta, die Tochter des Seemanns, reparierte sie heimlich."),
    *bad(
        "statement",
        CLOCK,
        "The clock was repaired by the daughter of a sailor.",
        "She kept her secret because she was modest.",
        "Marta Bell fixed the broken clock in secret.",
        "The reasons for the silence of the village.",
        "This text is about a clock and a village.",
        "There are three people in the story.",
        "In 1995, the council found out about the repair.",
        "It is a story about gratitude.",
    ),
    *bad("statement", CHINESE, "这个故事讲的是一座旧钟。"),
    *bad("statement", SPANISH, "El reloj fue reparado por una joven."),
    *bad("statement", GERMAN, "Die Uhr wurde von einer jungen Frau repariert."),
    *bad("statement", FRENCH, "L'horloge fut réparée par une jeune femme."),
    *bad("statement", RUSSIAN, "Часы снова пошли благодаря девушке."),
    *bad("remark", CLOCK, "Here are the requests:", "Let me know if you need more.", "I hope these questions help!"),
    *bad(
        "points_at_passage",
        CLOCK,
        "What is the main idea of the passage?",
        "Summarize this excerpt in two sentences.",
        "According to the text above, who repaired the clock?",
        "What does the given paragraph say about the council?",
        "Based on the text provided, why did the captain weep?",
        "How does the author use irony in this passage?",
        "List the characters mentioned above.",
        "What does the second paragraph describe?",
        "Explain the main points of the provided text.",
        "Which events does this chunk describe?",
        "From the information given, what can be inferred about Marta?",
        "Who is the narrator of the extract?",
        "What happens at the end of this section?",
        "Read the following passage and answer: who wept?",
    ),
    *bad(
        "points_at_passage",
        CHINESE,
        "这段文字的主要内容是什么？",
        "根据上文，谁修好了旧钟？",
        "请总结上述内容。",
        "该段落中提到了哪些人？",
        "根据提供的文本，女儿为什么沉默？",
    ),
    *bad("points_at_passage", JAPANESE, "この段落の要点は何ですか？", "上の文章によると、誰が時計を直しましたか？"),
    *bad("points_at_passage", RUSSIAN, "О чём говорится в этом отрывке?", "Кратко изложите приведённый текст."),
    *bad(
        "points_at_passage",
        SPANISH,
        "¿De qué trata este fragmento?",
        "Según el texto anterior, ¿quién reparó el reloj?",
    ),
    *bad("points_at_passage", GERMAN, "Worum geht es in diesem Textabschnitt?", "Was sagt der obige Text über Marta?"),
    *bad("points_at_passage", FRENCH, "De quoi parle ce passage ?", "Résumez l'extrait en deux phrases."),
    *bad("points_at_passage", CLOCK, "Qual è il tema del brano?", "Qual é a ideia principal do trecho?"),
    *bad("points_at_passage", CLOCK, "이 지문의 주제는 무엇입니까?", "ما الفكرة الرئيسية في هذا المقطع؟"),
]

# (name, chunk, answer, its requests, how many items are left out by reason)
ANSWERS: list[tuple[str, str, str, list[str], dict[str, int]]] = [
    ("a bare number", CLOCK, "1.1", [], {"no_letters": 1}),
    (
        "an echo and nothing else",
        CLOCK,
        "This is a list of requests that a careful reader could make about the passage.\n\n"
        "The requests are answerable from the passage alone and make sense to someone who holds a much longer text.",
        [],
        {"prompt_echo": 2},
    ),
    (
        "one request four times",
        CLOCK,
        '1. One request is: "What is the name of the sailor\'s daughter?"\n'
        '2. Another request is: "What is the name of the sailor\'s daughter?"\n'
        '3. A third request is: "What is the name of the sailor\'s daughter?"\n'
        '4. A fourth request is: "What is the name of the sailor\'s daughter"',
        ["What is the name of the sailor's daughter?"],
        {"repeated": 3},
    ),
    (
        "categories of the prompt",
        CLOCK,
        "1. Questions about details: What was the spring taken from?\n"
        "2. Questions about reasons and connections: Why did the captain weep?\n"
        "3. Tasks such as summing up: Sum up what the council did.\n"
        "4. Comparing: How do the guard and the captain differ?",
        [
            "What was the spring taken from?",
            "Why did the captain weep?",
            "Sum up what the council did.",
            "How do the guard and the captain differ?",
        ],
        {},
    ),
    (
        "questions and their answers in turn",
        CLOCK,
        "1. Who repaired the clock?\n2. Marta Bell repaired the clock.\n3. When did it stop?\n4. It stopped in 1984.",
        ["Who repaired the clock?", "When did it stop?"],
        {"statement": 2},
    ),
    (
        "answers behind the questions",
        CLOCK,
        "1. Who repaired the clock? Marta Bell did.\n2. When did it stop? In the winter of 1984.\n"
        "3. Why did she tell nobody? Give two reasons.",
        ["Who repaired the clock?", "When did it stop?", "Why did she tell nobody? Give two reasons."],
        {},
    ),
    ("a paragraph", CLOCK, PARAGRAPH, [], {"too_long": 1}),
    (
        "sentences of the chunk",
        CLOCK,
        "1. In the winter of 1984 the old clock by the harbour stopped.\n2. She told nobody, and for eleven years the "
        "village believed that the clock had healed itself.\n3. What did the council ask for?",
        ["What did the council ask for?"],
        {"copy": 2},
    ),
    (
        "a mixture",
        CLOCK,
        "Sure! Here are 4 requests:\n\n1. What is the passage about?\n2. Summarize the role of the council.\n"
        "3. The clock.\n4. Second request: Summarize the role of the council.\n\nI hope these help!",
        ["Summarize the role of the council."],
        {"points_at_passage": 1, "copy": 1, "repeated": 1},
    ),
    (
        "JSON",
        CLOCK,
        '["Who repaired the clock?", "Request 2: Why did she tell nobody?", "1.1", "Summarize the excerpt."]',
        ["Who repaired the clock?", "Why did she tell nobody?"],
        {"no_letters": 1, "points_at_passage": 1},
    ),
    (
        "JSON that was cut",
        CLOCK,
        '["Who repaired the clock?", "Why did she tell nobody?", "What did the coun',
        ["Who repaired the clock?", "Why did she tell nobody?"],
        {},
    ),
    (
        "Chinese",
        CHINESE,
        "1. 第一个问题：谁修好了旧钟？\n2. 第二个问题：谁修好了旧钟？\n3. 请总结这段文字。\n4. 港口的旧钟停了。",
        ["谁修好了旧钟？"],
        {"repeated": 1, "points_at_passage": 1, "copy": 1},
    ),
    (
        "one-word items",
        CLOCK,
        "1. Summarize.\n2. Why?\n3. Compare Marta and the guard.",
        ["Summarize.", "Compare Marta and the guard."],
        {"too_short": 1},
    ),
]

# Written when the gate already knew the ones above, to see what it had learned by heart: "+" is usable, "-" is not.
PLANTS = (
    "Photosynthesis turns light into chemical energy. In 1771 Joseph Priestley noticed that a mint plant kept a candle "
    "burning under a bell jar. Chlorophyll absorbs red and blue light, which is why leaves look green. The rate "
    "depends on temperature; above 40 degrees the enzymes fail. Farmers in the valley of Orkun grow tomatoes in "
    "greenhouses with added carbon dioxide. The mayor, Elif Demir, opened the third greenhouse in May."
)
SECOND = """
+ What did Joseph Priestley notice in 1771?
+ How does temperature affect the rate of photosynthesis?
+ Outline the steps by which light becomes chemical energy.
+ Why do leaves look green?
+ Argue for or against adding carbon dioxide in greenhouses.
+ Who is Elif Demir and why is she mentioned?
+ What is meant by "the enzymes fail"?
+ Contrast the mint plant experiment with modern greenhouses.
+ Tabulate the colours of light and whether chlorophyll absorbs them.
+ At what temperature do the enzymes fail?
+ Explain to a ten-year-old why plants need light.
+ Can photosynthesis take place at 45 degrees? Justify your answer.
+ Write a short dialogue between Priestley and the mayor of Orkun.
+ Using the details about Orkun, estimate how many greenhouses there are.
+ Suppose chlorophyll absorbed green light instead. What would leaves look like?
+ If the temperature rises from 20 to 45 degrees, what happens to the rate?
+ Priestley used a bell jar. What for?
+ In the story of the greenhouse, what did the mayor do in May?
+ Quote the sentence that says why leaves are green.
+ What connects the candle, the mint plant and the bell jar?
+ Analyse the relationship between temperature and enzymes.
+ Rank red, green and blue light by how well chlorophyll absorbs them.
+ Name two factors.
+ What happened first: the candle experiment or the opening of the greenhouse?
+ Paraphrase the explanation of why leaves look green.
+ Brainstorm three uses for added carbon dioxide.
+ What year?
+ Provide a summary of photosynthesis.
+ Summarise the chapter on greenhouses.
+ What lesson can farmers elsewhere draw from Orkun?
+ Is it true that plants burn candles?
+ Critically evaluate Priestley's conclusion.
+ Try to explain the green colour without using the word chlorophyll.
+ What happens above 40 degrees?
+ Which of the paragraphs of the law applies to greenhouses?
+ Complete the sentence: "Chlorophyll absorbs ..."
+ True or false: enzymes fail above 40 degrees.
+ How did the passage of time change the farmers' methods?
+ Create a quiz with three questions about photosynthesis.
+ Calculate 40 degrees Celsius in Fahrenheit.
+ ¿Por qué las hojas son verdes?
+ Nenne zwei Faktoren, von denen die Fotosynthese abhängt.
+ 叶子为什么是绿色的？
+ 用自己的话解释光合作用
+ 写一篇关于温室的短文
+ Почему листья зелёные?
+ Назовите два фактора, влияющих на фотосинтез.
+ 葉が緑色に見える理由を答えなさい。
+ Quels facteurs influencent la photosynthèse ?
+ Perché le foglie sono verdi?
- Photosynthesis turns light into chemical energy.
- Chlorophyll absorbs red and blue light
- The rate of photosynthesis depends on the temperature.
- Elif Demir is the mayor of Orkun.
- Answer: The enzymes fail.
- 40
- 3.
- The passage explains how photosynthesis works.
- What is the purpose of this passage?
- In the passage, what is said about Priestley?
- As mentioned in the text above, when was the greenhouse opened?
- Requests that a careful reader could make:
- A list of requests that a careful reader could make about photosynthesis
- The reader could ask about the rate of photosynthesis.
- A careful reader might want to know more about chlorophyll.
- Please note that these are just examples.
- These are some of the questions that can be answered from the passage.
- Photosynthesis
- Joseph Priestley and the mint plant
- Temperature and enzymes
- It is important because plants make food.
- Joseph Priestley discovered that plants produce oxygen.
- Plants need light, water and carbon dioxide to grow.
- Chlorophyll is green because it reflects green light.
- This request is about details.
- According to the passage, why are leaves green?
- How does the provided information explain the green colour?
- What is the topic of the above paragraph?
- What does the author of the excerpt think about farmers?
- I would ask about the temperature.
- Question 3
- Request
- Detail question
- Die Blätter sind grün, weil Chlorophyll rotes Licht aufnimmt.
- Las hojas son verdes porque absorben luz roja.
- 叶子是绿色的，因为叶绿素吸收红光和蓝光。
- 本段主要讲了什么？
- 阅读以上材料，回答问题。
- Selon le passage, pourquoi les feuilles sont-elles vertes ?
- Laut dem Auszug, warum sind Blätter grün?
- Согласно отрывку, почему листья зелёные?
- Con base en el pasaje, ¿por qué son verdes las hojas?
- Mint.
- Yes, it does.
- None of the above.
- Sure, here's another one.
- You can answer this from the passage alone.
- name the people, things or ideas
- The mayor opened the third greenhouse in May, which shows that the village is growing.
""".strip().splitlines()
